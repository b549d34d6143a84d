//! A server of Ruby that runs no fibers: Puma, with work after its replies.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::thread;
use std::time::Duration;

use tests::http;
use tests::place;
use tests::profiler::Profiler;
use tests::program::Program;
use tests::scratch::Scratch;
use tests::table::Table;
use tests::wait;

/// How long each reply is followed by work. Ruby needs some 0.3 ms of its own between the reply and that, and more on a
/// busy machine, in which its thread is no more available.
const AFTER_MS: u64 = 150;
const REQUESTS: u64 = 8;

struct Puma {
    program: Program,
    address: SocketAddr,
}

impl Puma {
    fn start() -> Puma {
        place::require_root();
        // Free a moment ago.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a free port");
        let configuration = place::root().join("tests/fixtures/puma/config.ru");
        let mut command = Command::new("puma");
        command.args(["-q", "-t", "4:4", "-e", "production", "-b", &format!("tcp://{address}")]).arg(configuration);
        let puma = Puma { program: Program::start(&mut command), address };
        wait::until("a server", || http::get(puma.address, "/truth").map(drop).map_err(|e| e.to_string()));
        puma
    }

    fn get(&self, path: &str) -> String {
        http::get(self.address, path).expect("an answer").body
    }
}

/// Check that the time after replies is what the server spends there, asleep and on a CPU.
#[test]
fn after_replies_of_puma() {
    let puma = Puma::start();
    let pid = puma.program.pid();
    let profiler = Profiler::attach_with(pid, &["--requests"]);
    assert!(profiler.status().target(pid).is_attached("requests"));
    let mut table = Table::new("Puma, rack.after_reply");
    for request in 0..REQUESTS {
        puma.get(&format!("/{}/{AFTER_MS}", if request % 2 == 0 { "sleep" } else { "spin" }));
        // Ruby's lock is the thread's own meanwhile: whoever waits for it is not told from who waits for work.
        thread::sleep(Duration::from_millis(AFTER_MS + 100));
    }
    let truth = puma.get("/truth");
    let mut truth = truth.split_whitespace().map(|word| word.parse::<u64>().expect("a number"));
    let (replies, after_ns) = (truth.next().expect("a count"), truth.next().expect("a time"));
    let page = wait::until("the last request", || {
        let page = profiler.page();
        match page.value("profiler_request_seconds_count", &[]) as u64 {
            n if n > replies => Ok(page),
            n => Err(format!("{n} requests")),
        }
    });
    // And the one that asked for the truth.
    table.equal("requests", replies + 1, page.value("profiler_request_seconds_count", &[]) as u64);
    table.equal("replies, as asked for", REQUESTS, replies);
    let seen = page.value("profiler_after_reply_seconds_sum", &[]);
    table.within("after replies, s", after_ns as f64 / 1e9, seen, 2.0);
    let status = profiler.status();
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}

/// Check that an agent finds it by its runtime, of the version that Ruby itself tells, and counts what the kernel sees of it.
#[test]
fn an_agent_finds_ruby() {
    const ASKED: u64 = 20;
    let puma = Puma::start();
    let pid = puma.program.pid();
    let rules = Scratch(Scratch::new("ruby-rules").0.with_extension("toml"));
    fs::write(&rules.0, "[[rules]]\naction = \"include\"\nruntime = \"ruby\"\n").expect("a file of our own");
    let file = rules.0.to_string_lossy().into_owned();
    let agent = Profiler::start(&["agent", "--config.file", &file, "--web.listen-address", "127.0.0.1:0"]);
    let watched = || {
        let status = agent.status();
        let known = status.0["targets"].as_array().into_iter().flatten().find(|target| target["pid"] == pid).cloned();
        known.ok_or_else(|| format!("{:?}", status.0["discovery"]))
    };
    let target = wait::until("Puma among the targets", watched);
    let mut table = Table::new("Puma, found by an agent");
    let version = Command::new("ruby").args(["-e", "print RUBY_VERSION[/\\d+\\.\\d+/]"]).output().expect("ruby runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    table.equal("runtime", "ruby", target["runtime"].as_str().unwrap_or_default());
    table.equal("version", version.as_str(), target["runtime_version"].as_str().unwrap_or_default());
    let status = agent.status();
    for signal in ["task_spawn", "task_name", "task_polls"] {
        let (state, why) = status.target(pid).probe(signal).expect("a row");
        table.holds(signal, "attached", why, state == "attached");
    }
    table.holds("run queue", "attached", "", status.target(pid).is_attached("run_queue"));
    let labels = [("runtime", "ruby"), ("listener", &puma.address.to_string())];
    let accepted = || agent.page().value("profiler_accepted_total", &labels) as u64;
    let before = accepted();
    for _ in 0..ASKED {
        puma.get("/truth");
    }
    let seen = wait::until_or_last(|| accepted() - before, |seen| *seen == ASKED);
    table.equal("connections accepted", ASKED, seen);
    agent.stop();
    table.finish();
}
