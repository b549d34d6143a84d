//! From copied stacks to spawn sites, at a bounded rate. Never how a stack is unwound or read.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

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
/// Paths of a build that are remembered.
const MAX_PATHS: usize = 4096;

/// The paths of one build whose site is known, or known not to be told.
#[derive(Default)]
pub(super) struct Paths(RefCell<HashMap<SpawnPath, Option<SiteInfo>>>);

impl Paths {
    /// Understands those of these paths that are new.
    fn understand<'a>(&self, build: &Build, paths: impl Iterator<Item = &'a SpawnPath>) {
        let mut known = self.0.borrow_mut();
        let new: Vec<SpawnPath> = paths.filter(|path| !known.contains_key(path)).cloned().collect();
        if new.is_empty() {
            return;
        }
        let sites = match build.file.as_deref().map(Binary::parse) {
            Some(Ok(binary)) => build.runtime.spawn_sites(&binary, &new),
            _ => vec![None; new.len()],
        };
        known.extend(new.into_iter().zip(sites.iter().map(|site| site.as_ref().map(site_info))));
        build.forget_pages();
    }
}

/// The spawn sites of one image in one process.
pub(super) struct SpawnSites {
    /// What is run. Its file is read only while stacks are unwound and paths understood.
    build: Rc<Build>,
    waiting: VecDeque<StackSample>,
    /// Paths that have not been understood yet, and how many stacks were of them.
    unknown: HashMap<SpawnPath, u64>,
    /// Stacks that came too fast or were of too many paths.
    pub dropped: u64,
}

impl SpawnSites {
    pub fn new(build: Rc<Build>) -> SpawnSites {
        SpawnSites { build, waiting: VecDeque::new(), unknown: HashMap::new(), dropped: 0 }
    }

    /// Takes a stack to be looked at later.
    pub fn take(&mut self, sample: StackSample) {
        if self.build.unwinder.is_none() || self.build.file.is_none() || self.waiting.len() >= MAX_WAITING {
            self.dropped += 1;
        } else {
            self.waiting.push_back(sample);
        }
    }

    /// Unwinds what waits, at most so much as may be done at one tick.
    pub fn unwind(&mut self, instance: &Instance<'_>, table: &mut Table, target: TargetId) {
        let (Some(unwinder), Some(file)) = (&self.build.unwinder, &self.build.file) else { return };
        let known = self.build.paths.0.borrow();
        for _ in 0..PER_TICK {
            let Some(sample) = self.waiting.pop_front() else { break };
            let Some(kind) = instance.kind(&sample.header, sample.vtable) else { continue };
            let stack = CopiedStack { registers: sample.registers, bytes: &sample.bytes };
            let mut frames = unwinder.frames(file, instance.load_bias, &stack);
            frames.truncate(FRAMES);
            let path = SpawnPath { kind, frames };
            match known.get(&path) {
                Some(Some(site)) => drop(table.spawned_at(target, kind, site)),
                Some(None) => {}
                None if known.len() + self.unknown.len() < MAX_PATHS || self.unknown.contains_key(&path) => {
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
        self.build.paths.understand(&self.build, self.unknown.keys());
        let known = self.build.paths.0.borrow();
        for (path, count) in self.unknown.drain() {
            if let Some(Some(site)) = known.get(&path) {
                for _ in 0..count {
                    table.spawned_at(target, path.kind, site);
                }
            }
        }
    }
}
