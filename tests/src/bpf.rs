//! BPF objects as the kernel numbers them. Never through the profiler.

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Numbers of the kernel's BPF objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    pub programs: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
}

// Commands of bpf(2), include/uapi/linux/bpf.h.
const PROG_GET_NEXT_ID: i32 = 11;
const MAP_GET_NEXT_ID: i32 = 12;
const LINK_GET_NEXT_ID: i32 = 31;

impl BpfObjects {
    /// All that exist just now.
    pub fn all() -> BpfObjects {
        BpfObjects { programs: ids(PROG_GET_NEXT_ID), links: ids(LINK_GET_NEXT_ID), maps: ids(MAP_GET_NEXT_ID) }
    }

    /// Those that a running process holds a descriptor of.
    pub fn held() -> BpfObjects {
        let mut held = BpfObjects::default();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            for info in fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten() {
                for line in fs::read_to_string(info.path()).unwrap_or_default().lines() {
                    let Some((name, value)) = line.split_once(':') else { continue };
                    let set = match name {
                        "prog_id" => &mut held.programs,
                        "link_id" => &mut held.links,
                        "map_id" => &mut held.maps,
                        _ => continue,
                    };
                    set.extend(value.trim().parse::<u32>());
                }
            }
        }
        held
    }

    /// Those that came since `before`, and that no process holds: they have outlived whoever made them. What another
    /// program of this host loads meanwhile is not among them.
    pub fn left_over_since(before: &BpfObjects) -> BpfObjects {
        BpfObjects::all().without(&BpfObjects::held()).without(before)
    }

    /// Without others.
    #[must_use]
    pub fn without(&self, others: &BpfObjects) -> BpfObjects {
        let less = |own: &BTreeSet<u32>, others: &BTreeSet<u32>| own.difference(others).copied().collect();
        BpfObjects {
            programs: less(&self.programs, &others.programs),
            links: less(&self.links, &others.links),
            maps: less(&self.maps, &others.maps),
        }
    }

    /// Those that are also among others.
    #[must_use]
    pub fn among(&self, others: &BpfObjects) -> BpfObjects {
        self.without(&self.without(others))
    }

    /// How many programs and links there are.
    pub fn probes(&self) -> usize {
        self.programs.len() + self.links.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.links.is_empty() && self.maps.is_empty()
    }
}

impl std::fmt::Display for BpfObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} BPF programs and {} links", self.programs.len(), self.links.len())
    }
}

fn ids(command: i32) -> BTreeSet<u32> {
    #[repr(C, align(8))]
    struct Attributes {
        start: u32,
        next: u32,
        flags: u32,
        reserved: u32,
    }
    let mut ids = BTreeSet::new();
    let mut start = 0;
    loop {
        let mut attributes = Attributes { start, next: 0, flags: 0, reserved: 0 };
        // SAFETY: the attributes are live, writable, and of the size that is passed.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<Attributes>()) };
        if result != 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "failed to list BPF objects: {error}");
            return ids;
        }
        start = attributes.next;
        ids.insert(start);
    }
}
