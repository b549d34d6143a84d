//! Tasks of Ruby's library async, each of which is a fiber.

use tests::place;
use tests::profiler::Profiler;
use tests::program::Program;
use tests::ruby;
use tests::table::Table;
use tests::wait;

/// Tasks of a round, within one more.
const TASKS: u64 = 100;
const ROUNDS: u64 = 3;

/// Check that the fibers of a library's scheduler are counted as those are that a program makes itself.
#[test]
fn tasks_of_async_are_fibers() {
    place::require_root();
    let mut program = Program::start(ruby::program("ruby").arg(ruby::place_of("tests/fixtures/ruby/async.rb")));
    program.line();
    let pid = program.pid();
    let profiler = Profiler::attach_within("off", pid, &[]);
    let mut made = 0;
    for _ in 0..ROUNDS {
        program.send(&format!("run {TASKS}"));
        made = program.line().parse().expect("a count");
    }
    let status = wait::until_or_last(|| profiler.status(), |status| status.target(pid).completed() >= made);
    let target = status.target(pid);
    let mut table = Table::new("Ruby's async, tasks that sleep");
    table.equal("fibers, as asked for", ROUNDS * (TASKS + 1), made);
    table.equal("spawned", made, target.spawned());
    table.equal("completed", made, target.completed());
    table.equal("alive", 0, target.alive());
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}
