//! A real Prometheus that scrapes the profiler as its file of users and certificates demands.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use serde_json::Value;
use tests::fixture::Fixture;
use tests::http;
use tests::place;
use tests::profiler::launch;
use tests::program::Program;
use tests::scratch::Folder;
use tests::status::number;
use tests::table::Table;
use tests::wait;

/// alice, secret
const USERS: &str = "basic_auth_users:\n  alice: $2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";

struct Prometheus {
    program: Program,
    address: SocketAddr,
}

impl Prometheus {
    /// Scrapes `target` once a second, as alice and as somebody who has a wrong password.
    fn start(folder: &Folder, target: SocketAddr) -> Prometheus {
        let job = |name: &str, password: &str| {
            format!(
                "  - job_name: {name}\n    scheme: https\n    basic_auth: {{ username: alice, password: {password} }}\n    \
                 tls_config: {{ ca_file: certificate.pem, server_name: localhost }}\n    \
                 static_configs: [ {{ targets: [ '{target}' ] }} ]\n"
            )
        };
        let jobs = job("right", "secret") + &job("wrong", "guessed");
        let global = "global: { scrape_interval: 1s, scrape_timeout: 1s }\nscrape_configs:\n";
        let configuration = folder.write("prometheus.yml", &(global.to_owned() + &jobs));
        // Free a moment ago.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a free port");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={configuration}")).arg(format!("--web.listen-address={address}"));
        command.arg(format!("--storage.tsdb.path={}", folder.path("data").display())).arg("--log.level=warn");
        Prometheus { program: Program::start(&mut command), address }
    }

    /// What a query of one value gives.
    fn value(&mut self, query: &str) -> Result<String, String> {
        assert!(self.program.is_running(), "prometheus has ended: {:?}", self.program.errors());
        let path = format!("/api/v1/query?query={query}");
        let response = http::get(self.address, &path).map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&response.body).map_err(|e| e.to_string())?;
        let value = answer.pointer("/data/result/0/value/1").and_then(Value::as_str);
        value.map(str::to_owned).ok_or_else(|| response.body.clone())
    }

    /// The same, once it is `wanted`, or as it was last.
    fn value_until(&mut self, query: &str, wanted: &str) -> String {
        let read = || self.value(query).unwrap_or_else(|none| none);
        wait::until_or_last(read, |seen| seen == wanted)
    }
}

/// Check that Prometheus reads the program's own counts over TLS with a password, and nothing with a wrong one.
#[test]
fn scrapes_over_tls() {
    place::require_root();
    let mut table = Table::new("Prometheus, over TLS and with a password");
    let folder = Folder::new("prometheus");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    folder.write("certificate.pem", &made.cert.pem());
    folder.write("key.pem", &made.signing_key.serialize_pem());
    let tls = "tls_server_config: { cert_file: certificate.pem, key_file: key.pem }\n";
    let web = folder.write("web.yml", &(tls.to_owned() + USERS));
    let mut fixture = Fixture::tokio("latest", "release", &["tasks"]);
    let pid = fixture.pid().to_string();
    let arguments = ["attach", "--pid", &pid, "--budget", "off", "--web.config.file", &web];
    let mut profiler = launch(&[&arguments[..], &["--web.listen-address", "127.0.0.1:0"]].concat());
    let line = profiler.error_line(|line| line.contains("serving https://"));
    let line = line.unwrap_or_else(|| panic!("the profiler does not serve: {:?}", profiler.errors()));
    let address = line.split_once("https://").and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
    let address: SocketAddr = address.unwrap_or_else(|| panic!("no address in `{line}`"));
    let truth = number(&fixture.ask("run 1000")["tasks"]["spawned"]).to_string();
    let mut prometheus = Prometheus::start(&folder, address);
    wait::until("a Prometheus that answers", || prometheus.value("vector(1)"));
    let query = "up%7Bjob%3D%22right%22%7D";
    table.equal("a scrape with the password", "1".to_owned(), prometheus.value_until(query, "1"));
    let query = "sum(profiler_tasks_spawned_total)";
    table.equal("tasks, by the program's count", truth.clone(), prometheus.value_until(query, &truth));
    let query = "up%7Bjob%3D%22wrong%22%7D";
    table.equal("a scrape with a wrong password", "0".to_owned(), prometheus.value_until(query, "0"));
    prometheus.program.signal(libc::SIGTERM);
    assert!(profiler.is_running(), "the profiler has ended: {:?}", profiler.errors());
    profiler.signal(libc::SIGINT);
    table.equal("exit code", 0, profiler.wait().code().unwrap_or(-1));
    table.finish();
}
