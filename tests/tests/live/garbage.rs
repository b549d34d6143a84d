//! Ruby's collection of garbage, against its own account. With `PROFILER_RUBY_ROOT`, of the Ruby in that directory.

use tests::profiler::Profiler;
use tests::ruby::Fibers;
use tests::table::Table;
use tests::wait;

/// Check that all collections are counted, those of before too, and that the time of the pauses is what Ruby itself measures:
/// of the process's CPU, where no other thread runs.
#[test]
fn pauses_are_those_that_ruby_tells() {
    let mut ruby = Fibers::start();
    let pid = ruby.pid();
    ruby.tell("litter 3");
    let profiler = Profiler::attach_within("off", pid, &[]);
    let before = ruby.tell("litter 0");
    let after = ruby.tell("litter 60");
    let [collections, ms] = after[..] else { panic!("{after:?}") };
    let page = wait::until_or_last(
        || profiler.page(),
        |page| page.value("profiler_gc_collections_total", &[]) == collections as f64,
    );
    let mut table = Table::new(format!("Ruby {}, collection of garbage", ruby.version));
    table.equal("collections", collections as f64, page.value("profiler_gc_collections_total", &[]));
    let seen_ms = page.value("profiler_gc_pause_seconds_sum", &[]) * 1e3;
    table.within("time of the pauses, ms", (ms - before[1]) as f64, seen_ms, 3.0);
    let pauses = page.value("profiler_gc_pause_seconds_count", &[]);
    table.holds("pauses", "at least one for each", pauses, pauses >= (collections - before[0]) as f64);
    let status = profiler.status();
    let losses = status.losses();
    table.holds("lost", "nothing", format!("{losses:?}"), losses.is_empty());
    table.finish();
}
