//! A target that forks, and whose children exec and end, as fast as can be: all are counted, and nothing is left of them.

use tests::fixture::Fixture;
use tests::maps;
use tests::place;
use tests::profiler::Profiler;
use tests::table::Table;
use tests::wait;

const CHILDREN: u32 = 3000;
const RATE: u32 = 1000;

#[test]
fn children_that_live_no_time() {
    place::require_root();
    let mut table = Table::new(format!("{CHILDREN} children that exec and end"));
    let mut fixture = Fixture::start(&place::forker(), &[]);
    let mut profiler = Profiler::attach(fixture.pid());
    let pid = profiler.program().pid();
    let held = |name| maps::entries(pid, name);
    let before = (held("TARGETS"), held("THREADS"));
    fixture.ask(&format!("churn {CHILDREN} {RATE}"));
    let events = |kind| profiler.page().value("profiler_events_total", &[("kind", kind)]) as u32;
    wait::until("all execs", || match events("process_execed") {
        n if n >= CHILDREN => Ok(()),
        n => Err(n.to_string()),
    });
    table.equal("forks", CHILDREN, events("process_forked"));
    table.equal("execs", CHILDREN, events("process_execed"));
    table.equal("ends of what is not the target's any more", 0, events("process_exited"));
    table.equal("threads that left", CHILDREN, events("thread_ended"));
    table.equal("processes", 1.0, profiler.page().value("profiler_target_processes", &[]));
    table.equal(
        "entries of targets and threads",
        format!("{before:?}"),
        format!("{:?}", (held("TARGETS"), held("THREADS"))),
    );
    let status = profiler.status();
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    // Children that run the same image are the target's, for as long as they live.
    fixture.ask("fork 20");
    wait::until("children", || match profiler.page().value("profiler_target_processes", &[]) {
        21.0 => Ok(()),
        n => Err(n.to_string()),
    });
    fixture.ask("reap");
    wait::until("their ends", || match events("process_exited") {
        20 => Ok(()),
        n => Err(n.to_string()),
    });
    table.equal("processes at the end", 1.0, profiler.page().value("profiler_target_processes", &[]));
    table.equal("entries at the end", format!("{before:?}"), format!("{:?}", (held("TARGETS"), held("THREADS"))));
    table.finish();
}
