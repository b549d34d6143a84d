//! Paths as container runtimes, kubelets and systemd make them.

use super::*;

const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";
const OTHER_ID: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";
const UID: &str = "ac04f3f2-1f2c-11e9-b015-1ebee232acfa";
const SLICE_UID: &str = "ac04f3f2_1f2c_11e9_b015_1ebee232acfa";
/// Of a static pod.
const HASH: &str = "5a7c1d3e9b2f48a6b0c4d8e2f6a1b3c5";

/// Lines in which `ID`, `OTHER`, `UID`, `SLICE_UID` and `HASH` stand for ids, and [container, pod, unit] that they tell.
fn check(lines: &str, expected: [&str; 3]) {
    let fill = |text: &str| {
        let text = text.replace("SLICE_UID", SLICE_UID).replace("UID", UID).replace("HASH", HASH);
        text.replace("OTHER", OTHER_ID).replace("ID", ID)
    };
    let [container_id, pod_uid, systemd_unit] = expected.map(|text| (!text.is_empty()).then(|| fill(text)));
    assert_eq!(Identity::parse(&fill(lines)), Identity { container_id, pod_uid, systemd_unit }, "{lines}");
}

/// Check the paths of version 2.
#[test]
fn version_2() {
    for (path, expected) in [
        // Docker, with both drivers.
        ("/system.slice/docker-ID.scope", ["ID", "", ""]),
        ("/docker/ID", ["ID", "", ""]),
        ("/docker/ID/system.slice/nginx.service", ["ID", "", ""]),
        // Podman, as root and not, with and without split cgroups, and what watches over its containers.
        ("/machine.slice/libpod-ID.scope/container", ["ID", "", ""]),
        ("/machine.slice/libpod-ID.scope", ["ID", "", ""]),
        ("/libpod_parent/libpod-ID", ["ID", "", ""]),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container", ["ID", "", ""]),
        ("/system.slice/web.service/libpod-payload-ID", ["ID", "", ""]),
        ("/machine.slice/libpod-conmon-ID.scope", ["", "", "libpod-conmon-ID.scope"]),
        // nerdctl.
        ("/system.slice/nerdctl-ID.scope", ["ID", "", ""]),
        ("/default/ID", ["ID", "", ""]),
        // Kubernetes: the systemd driver, all three classes, containerd, CRI-O and cri-dockerd.
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSLICE_UID.slice/cri-containerd-ID.scope",
            ["ID", "UID", ""],
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podSLICE_UID.slice/crio-ID.scope/container",
            ["ID", "UID", ""],
        ),
        ("/kubepods.slice/kubepods-podSLICE_UID.slice/docker-ID.scope", ["ID", "UID", ""]),
        ("/kubepods.slice/kubepods-podSLICE_UID.slice/crio-conmon-ID.scope", ["", "UID", ""]),
        ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podHASH.slice/crio-ID.scope", ["ID", "HASH", ""]),
        // The cgroupfs driver.
        ("/kubepods/burstable/podUID/ID", ["ID", "UID", ""]),
        ("/kubepods/podUID/ID", ["ID", "UID", ""]),
        ("/kubepods/besteffort/podUID/crio-ID", ["ID", "UID", ""]),
        ("/kubepods/burstable/podHASH/ID", ["ID", "HASH", ""]),
        // The systemd driver of the kubelet with the cgroupfs driver of containerd.
        ("/system.slice/containerd.service/kubepods-burstable-podSLICE_UID.slice:cri-containerd:ID", ["ID", "UID", ""]),
        // A node that is a container (kind), with both drivers.
        ("/docker/OTHER/kubelet/kubepods/burstable/podUID/ID", ["ID", "UID", ""]),
        (
            "/system.slice/docker-OTHER.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
             kubelet-kubepods-burstable-podSLICE_UID.slice/cri-containerd-ID.scope",
            ["ID", "UID", ""],
        ),
        // Containers in a container.
        ("/kubepods/burstable/podUID/ID/docker/OTHER", ["ID", "UID", ""]),
        ("/docker/ID/docker/OTHER", ["ID", "", ""]),
        // Seen from another cgroup namespace.
        ("/../../kubepods-burstable-podSLICE_UID.slice/cri-containerd-ID.scope", ["ID", "UID", ""]),
        // Amazon's ECS, on machines and on Fargate.
        ("/ecs/55091c13-b8cf-4801-b527-f4601742204d/ID", ["ID", "", ""]),
        ("/ecs/HASH/HASH-2574839563", ["HASH-2574839563", "", ""]),
        // Removed while the process ended.
        ("/system.slice/docker-ID.scope (deleted)", ["ID", "", ""]),
        // systemd.
        ("/system.slice/nginx.service", ["", "", "nginx.service"]),
        ("/system.slice/system-getty.slice/getty@tty1.service", ["", "", "getty@tty1.service"]),
        ("/system.slice/nginx.service/workers/3", ["", "", "nginx.service"]),
        ("/system.slice/web.service (deleted)", ["", "", "web.service"]),
        ("/user.slice/user-1000.slice/session-3.scope", ["", "", "session-3.scope"]),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-web.service", ["", "", "app-web.service"]),
        ("/init.scope", ["", "", "init.scope"]),
        ("/system.slice/_cpu.service", ["", "", "cpu.service"]),
        ("/batch.slice", ["", "", "batch.slice"]),
        ("/batch.slice/jobs", ["", "", "batch.slice"]),
        // Nobody's.
        ("/", ["", "", ""]),
        ("/jobs/7", ["", "", ""]),
        ("/.service", ["", "", ""]),
        ("", ["", "", ""]),
    ] {
        check(&format!("0::{path}\n"), expected);
    }
}

/// Check that what only looks like an id is none.
#[test]
fn what_only_looks_like_it() {
    for (path, expected) in [
        ("/docker/ID0", ["", "", ""]),
        ("/docker/4f797c539e6c", ["", "", ""]),
        (
            "/system.slice/run-r5a7c1d3e9b2f48a6b0c4d8e2f6a1b3c5.scope",
            ["", "", "run-r5a7c1d3e9b2f48a6b0c4d8e2f6a1b3c5.scope"],
        ),
        ("/system.slice/podUID.service", ["", "", "podUID.service"]),
        ("/jobs/tripodUID", ["", "", ""]),
        ("/kubepods/burstable/podac04f3f2-1f2c-11e9-b015", ["", "", ""]),
        ("/kubepods.slice/kubepods-burstable.slice", ["", "", "kubepods-burstable.slice"]),
    ] {
        check(&format!("0::{path}\n"), expected);
    }
}

/// Check version 1, alone and with version 2 beside it.
#[test]
fn version_1() {
    check("12:memory:/docker/ID\n11:cpu,cpuacct:/docker/ID\n1:name=systemd:/docker/ID\n", ["ID", "", ""]);
    check("9:perf_event:/\n8:memory:/kubepods/podUID/ID\n1:name=systemd:/\n0::/\n", ["ID", "UID", ""]);
    check(
        "4:memory:/system.slice/web.service\n1:name=systemd:/system.slice/web.service\n0::/system.slice/web.service\n",
        ["", "", "web.service"],
    );
    // The containerd that the runtime is started by is no unit of the container's.
    check("4:memory:/kubepods/podUID/ID\n0::/system.slice/containerd.service\n", ["ID", "UID", ""]);
    // Controllers are anybody's: what is there like a unit is none.
    check("4:memory:/web.service\n1:name=systemd:/\n", ["", "", ""]);
    // A line that is none.
    check("\n:\n4:memory\nnonsense\n", ["", "", ""]);
}

/// Check that this process has one, whatever it is.
#[test]
fn it_is_read() {
    assert!(cgroup_lines(std::process::id()).is_some());
    assert!(cgroup_lines(4_000_000_000).is_none());
}

proptest::proptest! {
    /// Check that any bytes are read without a panic.
    #[test]
    fn any_lines(lines in "([0-9]{0,2}:[a-z=,]{0,6}:(/?[a-z0-9_.:-]{0,70}){0,5}\n?|\\PC{0,40}\n?){0,4}") {
        drop(Identity::parse(&lines));
    }
}
