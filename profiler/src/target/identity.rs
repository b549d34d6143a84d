//! What manages a process, by the path of its cgroup: container, pod, systemd unit. Never their names, which only their
//! managers know, and no file but /proc/PID/cgroup.

use std::fs;

/// Length of a container's id: a SHA-256 in hexadecimal digits.
const CONTAINER_ID: usize = 64;
/// Length of the ids that Amazon's Fargate gives to tasks and to static pods by the kubelet: 128 bits.
const SHORT_ID: usize = 32;
/// The groups of digits in a UUID.
const UUID: [usize; 5] = [8, 4, 4, 4, 12];
/// Processes that watch over a container are in a cgroup that is named after it, and are no part of it.
const MONITOR: &str = "conmon";

/// Who manages a process. What does not apply is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Id of the container that the node's container runtime knows.
    pub container_id: Option<String>,
    /// Id of the Kubernetes pod, as its API has it; of a static pod, the hash of its file.
    pub pod_uid: Option<String>,
    /// The unit of systemd; `None` in a container, where it would be the container's again.
    pub systemd_unit: Option<String>,
}

impl Identity {
    /// What the lines of /proc/PID/cgroup tell.
    pub fn parse(lines: &str) -> Identity {
        let mut groups: Vec<(u8, &str)> = lines.lines().filter_map(group).collect();
        // Sorting keeps the order of those that are equally good.
        groups.sort_by_key(|(rank, _)| *rank);
        let in_container = groups.iter().map(|(_, path)| container(path)).find(|found| found.container_id.is_some());
        let in_pod = || groups.iter().map(|(_, path)| container(path)).find(|found| found.pod_uid.is_some());
        if let Some(found) = in_container.or_else(in_pod) {
            return found;
        }
        // Only the first two ranks are systemd's.
        let unit = groups.iter().take_while(|(rank, _)| *rank < OTHER).find_map(|(_, path)| unit(path));
        Identity { systemd_unit: unit, ..Identity::default() }
    }
}

/// The lines of /proc/PID/cgroup; `None` once the process has ended.
pub fn cgroup_lines(pid: u32) -> Option<String> {
    let lines = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    Some(String::from_utf8_lossy(&lines).into_owned())
}

/// The paths in such lines.
pub fn cgroup_paths(lines: &str) -> Vec<String> {
    lines.lines().filter_map(group).map(|(_, path)| path.to_owned()).collect()
}

/// Rank of the hierarchies that systemd does not make.
const OTHER: u8 = 2;

/// A line's hierarchy, the best first, and its path.
fn group(line: &str) -> Option<(u8, &str)> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let rank = match controllers {
        "name=systemd" => 0,
        // Version 2. Where both are mounted, all but systemd's own processes may be in its root.
        "" => 1,
        _ => OTHER,
    };
    Some((rank, path.strip_suffix(" (deleted)").unwrap_or(path)))
}

/// The pod and the container of a path. A node may itself be a container, so that pods are looked for from the end; a
/// container may run others in itself, of which the node's runtime knows nothing, so that from there on the first counts.
fn container(path: &str) -> Identity {
    // One form of containerd's has the slice, the runtime and the id in one name, with colons in between.
    let parts: Vec<&str> = path.split(['/', ':']).collect();
    let pod = parts.iter().enumerate().rev().find_map(|(at, part)| Some((at, pod_uid(part)?)));
    let below = pod.as_ref().map_or(0, |(at, _)| at + 1);
    Identity {
        container_id: parts[below..].iter().find_map(|part| container_id(part)),
        pod_uid: pod.map(|(_, uid)| uid),
        systemd_unit: None,
    }
}

/// `podUID`, or `kubepods-burstable-podUID.slice`, where the dashes of the id are underscores.
fn pod_uid(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let at = name.rfind("pod")?;
    let before = &name[..at];
    if !(before.is_empty() || (before.contains("pods-") && before.ends_with('-'))) {
        return None;
    }
    let uid = name[at + "pod".len()..].replace('_', "-");
    let is_uuid = uid.split('-').map(str::len).eq(UUID) && uid.split('-').all(is_hexadecimal);
    (is_uuid || (uid.len() == SHORT_ID && is_hexadecimal(&uid))).then_some(uid)
}

/// `ID`, or `docker-ID.scope` with any runtime's name in front; on Fargate, the task's id and a number.
fn container_id(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    if id.len() == CONTAINER_ID && is_hexadecimal(id) {
        let is_runtime = !runtime.ends_with(MONITOR) && runtime.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        return is_runtime.then(|| id.to_owned());
    }
    let is_fargate = runtime.len() == SHORT_ID && is_hexadecimal(runtime) && id.len() >= 6;
    (is_fargate && name == part && id.bytes().all(|b| b.is_ascii_digit())).then(|| name.to_owned())
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The innermost service or scope; of a process that is in none, the innermost slice.
fn unit(path: &str) -> Option<String> {
    // systemd puts a `_` in front of a name that the kernel would take for one of its files.
    let named = |part: &str| part.strip_prefix('_').unwrap_or(part).to_owned();
    let innermost = |kinds: &[&str]| {
        let is_unit = |part: &&str| kinds.iter().any(|kind| part.len() > kind.len() && part.ends_with(kind));
        path.rsplit('/').find(is_unit).map(named)
    };
    innermost(&[".service", ".scope"]).or_else(|| innermost(&[".slice"]))
}

#[cfg(test)]
mod tests;
