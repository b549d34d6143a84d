//! A virtual machine that runs live tests on a kernel, and what it says. Never which tests, never what follows from it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::archive::Archive;
use super::image::Image;
use crate::process::{Ended, root};

/// Emulated: a machine within a machine has no KVM.
const QEMU: &str = "qemu-system-x86_64";
/// By one thread: with one per CPU, code that the kernel changes while it runs is sometimes seen half-changed.
const ACCELERATOR: &str = "tcg,thread=single";
/// All that is emulated, but cmpxchg16b: QEMU 7.2 loses the flags where an interrupt comes right behind it.
const CPU: &str = "max,-cx16";
const MEMORY_MIB: &str = "1024";
const CPUS: &str = "2";
/// No run takes so long; what hangs is ended.
const LIMIT: Duration = Duration::from_secs(900);
const PAUSE: Duration = Duration::from_millis(50);
const SHOWN_LINES: usize = 60;

/// What is in the machine.
pub struct Contents {
    /// The profiler as it is shipped: one static file.
    pub profiler: PathBuf,
    /// The first process.
    pub guest: PathBuf,
    /// The live tests.
    pub live: PathBuf,
    /// Programs that they attach to: where the tests look for them, and where they are.
    pub fixtures: Vec<(String, PathBuf)>,
}

/// What a machine said.
pub struct Outcome {
    /// What `profiler check` found there.
    pub check: Value,
    /// The same as a user with the least capabilities.
    pub least: Value,
    /// Whether these must have one more there, since maps count against the limit of locked memory.
    pub limited_memory: bool,
    /// Each test, in the order of the plan.
    pub tests: Vec<TestResult>,
    /// All that was written to the console.
    pub console: PathBuf,
    /// How long the machine ran.
    pub took: Duration,
}

/// How a test went.
pub struct TestResult {
    /// Its name.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
}

impl TestResult {
    /// Whether it failed.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed(_))
    }
}

/// How a test can go.
pub enum Verdict {
    /// What it compares is equal.
    Passed,
    /// The kernel lacks what it needs: this.
    LeftOut(String),
    /// Its last words.
    Failed(String),
}

impl Contents {
    /// The archive that the kernel unpacks and starts.
    fn archive(&self, image: &Image, plan: &str) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["/proc", "/sys", "/dev", "/tmp", "/modules", "/sys/kernel/tracing"] {
            archive.directory(directory);
        }
        archive.program("/init", &self.guest)?;
        archive.program("/live", &self.live)?;
        archive.program("/target/release/profiler", &self.profiler)?;
        for (place, from) in &self.fixtures {
            archive.program(&format!("/fixtures/{place}"), from)?;
        }
        for (n, module) in image.modules.iter().enumerate() {
            archive.file(&format!("/modules/{n}"), &fs::read(module)?);
        }
        archive.file("/plan", plan.as_bytes());
        Ok(archive.finish())
    }
}

/// Boots a kernel, with more parameters, and runs the tests of the plan.
///
/// # Errors
/// The machine does not start, or does not come to its end.
pub fn run(name: &str, image: &Image, contents: &Contents, parameters: &str, plan: &str) -> Result<Outcome> {
    let folder = root().join("target/kernels/runs").join(name);
    fs::create_dir_all(&folder)?;
    let (initrd, console, results) = (folder.join("initrd"), folder.join("console"), folder.join("results"));
    fs::write(&initrd, contents.archive(image, plan)?)?;
    let begin = Instant::now();
    let mut machine = Ended(
        Command::new(QEMU)
            .args(["-accel", ACCELERATOR, "-cpu", CPU, "-m", MEMORY_MIB, "-smp", CPUS])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", &format!("console=ttyS0 panic=-1 quiet mitigations=off {parameters}")])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", results.display()))
            .stdin(Stdio::null())
            .stderr(File::create(folder.join("qemu"))?)
            .spawn()
            .with_context(|| format!("failed to run {QEMU}: `cargo xtask setup` installs it"))?,
    );
    while machine.0.try_wait()?.is_none() {
        if begin.elapsed() > LIMIT {
            eprintln!("kernels: the machine is ended after {} s", LIMIT.as_secs());
            break;
        }
        sleep(PAUSE);
    }
    drop(machine);
    let outcome = last(name, plan)?;
    Ok(Outcome { took: begin.elapsed(), ..outcome })
}

/// What a kernel's last machine said. A test that it did not come to has failed.
///
/// # Errors
/// There was none, or it said nothing.
pub fn last(name: &str, plan: &str) -> Result<Outcome> {
    let folder = root().join("target/kernels/runs").join(name);
    let mut outcome = Outcome {
        check: Value::Null,
        least: Value::Null,
        limited_memory: false,
        tests: Vec::new(),
        console: folder.join("console"),
        took: Duration::ZERO,
    };
    let text = fs::read_to_string(folder.join("results")).unwrap_or_default();
    for line in text.lines() {
        let said: Value = serde_json::from_str(line).with_context(|| format!("`{line}` is no result"))?;
        if let Some(name) = said["test"].as_str() {
            let verdict = match said["skipped"].as_str() {
                Some(why) => Verdict::LeftOut(why.to_owned()),
                None if said["passed"] == true => Verdict::Passed,
                None => Verdict::Failed(said["words"].as_str().unwrap_or_default().to_owned()),
            };
            outcome.tests.push(TestResult { name: name.to_owned(), verdict });
        } else if let Some(check) = said.get("check") {
            outcome.check = check.clone();
            outcome.least = said["least"].clone();
            outcome.limited_memory = said["limited_memory"] == true;
        }
    }
    let qemu = fs::read_to_string(folder.join("qemu")).unwrap_or_default();
    let end = || format!("the machine ended before:\n{qemu}{}", last_lines(&outcome.console));
    if outcome.check.is_null() {
        bail!("{}", end());
    }
    let names = plan.lines().filter_map(|line| line.split(' ').next());
    let missing: Vec<&str> = names.filter(|name| outcome.tests.iter().all(|test| test.name != **name)).collect();
    let missing = missing.into_iter().map(|name| TestResult { name: name.to_owned(), verdict: Verdict::Failed(end()) });
    let missing: Vec<TestResult> = missing.collect();
    outcome.tests.extend(missing);
    Ok(outcome)
}

fn last_lines(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
