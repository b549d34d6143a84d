//! From copied stacks to spawn sites, at a bounded rate. Never how a stack is unwound or read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use super::builds::{Build, site_info};
use crate::decode::stack::StackSample;
use crate::model::table::{Table, TargetId};
use crate::model::task::SiteInfo;
use crate::runtime::{Instance, SpawnPath};
use crate::target::elf::Binary;
use crate::target::unwind::CopiedStack;

/// Stacks that wait to be unwound: a megabyte.
const MAX_WAITING: usize = 256;
/// Stacks that are unwound at one tick.
const PER_TICK: usize = 64;
/// Frames by which two paths differ. Further up are loops of the runtime and what calls the application.
const FRAMES: usize = 16;
/// Paths that are remembered.
const MAX_PATHS: usize = 4096;

/// Gives back the pages of a file that were read: they are read again where they are needed again.
fn forget_pages(file: &Mmap) {
    // SAFETY: the mapping is of a file and never written to: its pages are the file's, before and after.
    if let Err(e) = unsafe { file.unchecked_advise(UncheckedAdvice::DontNeed) } {
        log::debug!("failed to give back the pages of an executable: {e}");
    }
}

/// The spawn sites of one image in one process.
pub(super) struct SpawnSites {
    /// What is run. Its file is read only while stacks are unwound and paths understood.
    build: Arc<Build>,
    waiting: VecDeque<StackSample>,
    /// Paths whose site is known, or known not to be told.
    known: HashMap<SpawnPath, Option<SiteInfo>>,
    /// Paths that have not been understood yet, and how many stacks were of them.
    unknown: HashMap<SpawnPath, u64>,
    /// Stacks that came too fast or were of too many paths.
    pub dropped: u64,
}

impl SpawnSites {
    pub fn new(build: Arc<Build>) -> SpawnSites {
        forget_pages(&build.file);
        SpawnSites { build, waiting: VecDeque::new(), known: HashMap::new(), unknown: HashMap::new(), dropped: 0 }
    }

    /// Takes a stack to be looked at later.
    pub fn take(&mut self, sample: StackSample) {
        if self.build.unwinder.is_none() || self.waiting.len() >= MAX_WAITING {
            self.dropped += 1;
        } else {
            self.waiting.push_back(sample);
        }
    }

    /// Unwinds what waits, at most so much as may be done at one tick.
    pub fn unwind(&mut self, instance: &Instance<'_>, table: &mut Table, target: TargetId) {
        let Some(unwinder) = &self.build.unwinder else { return };
        for _ in 0..PER_TICK {
            let Some(sample) = self.waiting.pop_front() else { break };
            let Some(kind) = instance.kind(&sample.header, sample.vtable) else { continue };
            let stack = CopiedStack { registers: sample.registers, bytes: &sample.bytes };
            let mut frames = unwinder.frames(&self.build.file, instance.load_bias, &stack);
            frames.truncate(FRAMES);
            let path = SpawnPath { kind, frames };
            match self.known.get(&path) {
                Some(Some(site)) => drop(table.spawned_at(target, kind, site)),
                Some(None) => {}
                None if self.known.len() + self.unknown.len() < MAX_PATHS || self.unknown.contains_key(&path) => {
                    *self.unknown.entry(path).or_default() += 1;
                }
                None => self.dropped += 1,
            }
        }
    }

    /// Understands the paths that are new.
    pub fn understand(&mut self, table: &mut Table, target: TargetId) {
        if self.unknown.is_empty() {
            return;
        }
        let (paths, counts): (Vec<SpawnPath>, Vec<u64>) = self.unknown.drain().unzip();
        let sites = match Binary::parse(&self.build.file) {
            Ok(binary) => self.build.runtime.spawn_sites(&binary, &paths),
            Err(_) => vec![None; paths.len()],
        };
        for ((path, count), site) in paths.into_iter().zip(counts).zip(sites) {
            let site = site.as_ref().map(site_info);
            if let Some(site) = &site {
                for _ in 0..count {
                    table.spawned_at(target, path.kind, site);
                }
            }
            self.known.insert(path, site);
        }
    }
}
