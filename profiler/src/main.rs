fn main() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let pids = std::env::args().skip(2).map(|a| a.parse().unwrap()).collect();
    let secs: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let t = std::time::Instant::now();
    let mut s = profiler::session::Session::start(profiler::session::Options { pids, ring_bytes: 1 << 22, limits: Default::default(), force: false, poll_stack: false }).unwrap_or_else(|e| { eprintln!("{e}"); std::process::exit(1) });
    eprintln!("attached in {:?}", t.elapsed());
    for _ in 0..secs * 10 { std::thread::sleep(std::time::Duration::from_millis(100)); s.drain(); s.tick(); }
    println!("{:#?}", s.snapshot());
    println!("{}", std::fs::read_to_string("/proc/self/status").unwrap().lines().filter(|l| l.starts_with("Vm")).collect::<Vec<_>>().join("\n"));
    println!("stop {:?}", s.stop());
}
