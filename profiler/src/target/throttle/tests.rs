//! Cgroups in a folder of their own, as both versions lay them out.

use std::fs;

use super::*;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("profiler-throttle-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A mount of it, as /proc/self/mountinfo has it.
    fn mount(&self, root: &str, kind: &str, options: &str) -> MountInfo {
        MountInfo::from_line(&format!("30 24 0:26 {root} {} rw - {kind} {kind} {options}", self.0.display())).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn group(hierarchy: u32, controllers: &[&str], path: &str) -> ProcessCGroup {
    let controllers = controllers.iter().map(|&controller| controller.to_owned()).collect();
    ProcessCGroup { hierarchy, controllers, pathname: path.to_owned() }
}

fn second(periods: u64, us: u64) -> String {
    format!("usage_usec 9\nnr_periods 7\nnr_throttled {periods}\nthrottled_usec {us}\nnr_bursts 0\n")
}

fn first(periods: u64, ns: u64) -> String {
    format!("nr_periods 7\nnr_throttled {periods}\nthrottled_time {ns}\n")
}

/// Check that we take what has grown, once, and wait for the half that the kernel counts later.
#[test]
fn growth_is_taken_once() {
    let folder = Folder::new("growth");
    folder.write("cgroup.controllers", "cpu");
    folder.write("a/cgroup.type", "domain");
    folder.write("a/cpu.stat", &second(3, 500));
    let mut throttle =
        Throttle::among(&[group(0, &[], "/a")], &[folder.mount("/", "cgroup2", "rw")]).expect("a cgroup");
    assert_eq!(throttle.levels(), 1);
    assert_eq!(throttle.take().unwrap(), None, "what was before is not told");
    folder.write("a/cpu.stat", &second(4, 500));
    assert_eq!(throttle.take().unwrap(), None, "it is held still");
    folder.write("a/cpu.stat", &second(5, 900));
    assert_eq!(throttle.take().unwrap(), Some(Throttled { periods: 2, time_ns: 400_000 }));
    assert_eq!(throttle.take().unwrap(), None);
}

/// Check that we take the longer of two cgroups one within the other, and not their sum.
#[test]
fn nested_cgroups_are_not_added() {
    let folder = Folder::new("nested");
    folder.write("cgroup.sane_behavior", "0");
    folder.write("cpu.stat", &first(0, 0));
    folder.write("pod/cpu.stat", &first(0, 0));
    folder.write("pod/box/cpu.stat", &first(0, 0));
    // Version 1 goes first where it has the controller.
    let groups = [group(4, &["cpu", "cpuacct"], "/pod/box"), group(0, &[], "/elsewhere")];
    let mounts = [folder.mount("/", "cgroup", "rw,cpu,cpuacct")];
    let mut throttle = Throttle::among(&groups, &mounts).expect("a cgroup");
    assert_eq!(throttle.levels(), 2, "the root has no limit");
    folder.write("pod/cpu.stat", &first(1, 70));
    folder.write("pod/box/cpu.stat", &first(2, 50));
    assert_eq!(throttle.take().unwrap(), Some(Throttled { periods: 1, time_ns: 70 }));
}

/// Check that we say why nothing can be told.
#[test]
fn what_is_missing_is_named() {
    let folder = Folder::new("missing");
    folder.write("cgroup.controllers", "");
    folder.write("a/cgroup.type", "domain");
    folder.write("a/cpu.stat", "usage_usec 9\n");
    let mounts = [folder.mount("/", "cgroup2", "rw")];
    let why = |path: &str, mounts: &[MountInfo]| match Throttle::among(&[group(0, &[], path)], mounts) {
        Ok(_) => "found".to_owned(),
        Err(e) => e.to_string(),
    };
    assert!(why("/a", &mounts).contains("no CPU controller in cgroup `/a`"));
    assert!(why("/", &mounts).contains("root cgroup"));
    assert!(why("/../b", &mounts).contains("cgroup namespace"));
    assert!(why("/a", &[]).contains("not mounted"));
    assert!(why("/a", &[folder.mount("/b", "cgroup2", "rw")]).contains("cannot be seen"));
}

/// Check that we take no number from what is none.
#[test]
fn odd_files_are_not_believed() {
    for odd in ["", "nr_throttled 1", "nr_throttled x\nthrottled_usec 1", "nr_throttled 1\nthrottled_usec -1"] {
        assert_eq!(parse(odd), None, "{odd}");
    }
}
