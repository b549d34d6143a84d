//! The first and only process of a virtual machine: prepares the system, runs the live tests it was told to, says how
//! each went, and turns the machine off. `cargo xtask kernels` makes the machine. Never run on a host.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::nobody::{self, LEAST};

/// Where what is found is written to, a JSON object per line: the console has the kernel's words among it.
const RESULTS: &str = "/dev/ttyS1";
/// Names of tests, one a line; behind one may be the feature, as `profiler check` names it, without which it is left out.
const PLAN: &str = "/plan";
const LIVE: &str = "/live";
const PROFILER: &str = "/target/release/profiler";
/// Modules are loaded in the order of their names.
const MODULES: &str = "/modules";
/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(240);
/// What is told of a test that failed: its last words.
const WORDS: usize = 6000;

fn main() {
    if process::id() != 1 {
        eprintln!("this is the first process of a virtual machine, and nothing else");
        process::exit(2);
    }
    if let Err(e) = work() {
        println!("guest: {e}");
    }
    // SAFETY: plain system calls; nothing runs any more that would lose anything.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}

fn work() -> io::Result<()> {
    mount(c"proc", c"/proc")?;
    mount(c"sysfs", c"/sys")?;
    mount(c"devtmpfs", c"/dev")?;
    mount(c"tmpfs", c"/tmp")?;
    mount(c"tracefs", c"/sys/kernel/tracing").or_else(|_| mount(c"debugfs", c"/sys/kernel/debug"))?;
    // Says whether the kernel is locked down.
    let _ = mount(c"securityfs", c"/sys/kernel/security");
    let mut results = OpenOptions::new().write(true).open(RESULTS)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    say(&mut results, &json!({"release": release.trim(), "booted_after_seconds": uptime.split(' ').next()}))?;
    load_modules();
    raise_loopback()?;
    // The live tests look for what they need where these say. There is one thread.
    let environment = [("PROFILER_FIXTURES", "/fixtures"), ("CARGO_TARGET_DIR", "/target"), ("RUST_BACKTRACE", "0")];
    let found = check(&mut Command::new(PROFILER))?;
    let capabilities = nobody::least_here(Path::new(PROFILER));
    let least = check(&mut nobody::command(Path::new(PROFILER), capabilities))?;
    say(&mut results, &json!({ "check": found, "least": least, "limited_memory": capabilities != LEAST }))?;
    for line in fs::read_to_string(PLAN)?.lines() {
        let (test, needs) = line.split_once(' ').unwrap_or((line, ""));
        if !needs.is_empty() && found["features"][needs] != true {
            say(&mut results, &json!({ "test": test, "skipped": format!("no {needs}") }))?;
            continue;
        }
        let mut command = Command::new(LIVE);
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).envs(environment);
        say(&mut results, &run(test, &mut command)?)?;
    }
    say(&mut results, &json!({ "done": true }))
}

/// What `profiler check` says.
fn check(profiler: &mut Command) -> io::Result<Value> {
    let check = profiler.arg("check").arg("--json").output()?;
    let words = String::from_utf8_lossy(&check.stdout).into_owned();
    Ok(serde_json::from_str(&words).unwrap_or_else(|_| {
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        json!({ "failed": format!("{words}{said}") })
    }))
}

fn say(results: &mut File, what: &Value) -> io::Result<()> {
    writeln!(results, "{what}")
}

fn run(test: &str, command: &mut Command) -> io::Result<Value> {
    let log = "/tmp/test.log";
    let output = File::create(log)?;
    let begin = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn().map_err(io::Error::other)?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begin.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let words = fs::read(log)?;
    let words = String::from_utf8_lossy(&words).into_owned();
    print!("{words}");
    // A name that no test has is a mistake, and no success.
    let passed = status.is_some_and(|status| status.success()) && words.contains("1 passed");
    let mut result = json!({"test": test, "passed": passed, "seconds": begin.elapsed().as_secs_f64()});
    if !passed {
        let start = words.len().saturating_sub(WORDS);
        let start = (start..words.len()).find(|&at| words.is_char_boundary(at)).unwrap_or(words.len());
        result["words"] = words[start..].into();
        result["hung"] = status.is_none().into();
    }
    Ok(result)
}

fn mount(kind: &CStr, place: &CStr) -> io::Result<()> {
    // SAFETY: live, terminated strings; no data.
    let result = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::other(format!("failed to mount {kind:?}: {}", io::Error::last_os_error()))),
    }
}

/// What cannot be loaded is built in, or missed by a test.
fn load_modules() {
    let mut paths: Vec<_> = fs::read_dir(MODULES).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let loaded = File::open(&path).and_then(|module| {
            // SAFETY: a live descriptor, and a terminated string.
            let result = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
        if let Err(e) = loaded {
            println!("guest: failed to load {}: {e}", path.display());
        }
    }
}

fn raise_loopback() -> io::Result<()> {
    // SAFETY: a plain structure of the kernel's ABI, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: a live descriptor and a live request of the kind that the command takes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
