//! Who manages a target, as its cgroup tells.

use std::fs;

use tests::cgroup::Cgroup;
use tests::fixture::Fixture;
use tests::place;
use tests::profiler::Profiler;
use tests::table::Table;
use tests::wait;

/// Check that a process that is moved into a container's cgroup is known by it, on both pages, and once it has left no more.
#[test]
fn container_of_a_target() {
    const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";
    place::require_root();
    let Some(cgroup) = Cgroup::where_permitted(100) else { return };
    let container = cgroup.path().join(format!("docker-{ID}.scope"));
    fs::create_dir(&container).expect("a cgroup of our own");
    let fixture = Fixture::start(&place::forker(), &[]);
    let pid = fixture.pid();
    cgroup.release(pid).expect("a process of our own");
    let profiler = Profiler::attach(pid);
    let told = || {
        let series = profiler.page().has("profiler_target_container_info", &[("container_id", ID)]);
        format!("{}, {series}", profiler.status().target(pid).0["container_id"])
    };
    let (nothing, container_told) = ("null, false".to_owned(), format!("\"{ID}\", true"));
    let mut table = Table::new("a container");
    table.equal("before", nothing.clone(), told());
    fs::write(container.join("cgroup.procs"), pid.to_string()).expect("a process of our own");
    table.equal("in it", container_told.clone(), wait::until_or_last(told, |told| *told == container_told));
    cgroup.release(pid).expect("a process of our own");
    fs::remove_dir(&container).expect("an empty cgroup");
    table.equal("after", nothing.clone(), wait::until_or_last(told, |told| *told == nothing));
    table.finish();
}
