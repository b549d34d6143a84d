//! Loads the BPF object: offsets frozen into its globals, maps sized for the targets.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::maps::Map;
use aya::programs::UProbe;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use profiler_common::duration::DURATION_KINDS;

use super::attach::{Links, UnixHooks};
use super::btf::Btf;
use super::feature::Features;
use super::holder::Holder;
use super::signal::{Signals, Unwanted};
use super::{KernelError, bpf, capability, discovery, request, uring as ring};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/profiler-ebpf"));

/// The map through which all records come.
pub(super) const RING: &str = "EVENTS";
/// The map through which the kernel half's words come (aya-log-ebpf's).
const LOG: &str = "AYA_LOGS";

/// Sizes that the user chooses.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Targets that are told apart.
    pub targets: u32,
    /// Bytes of the ring buffer: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Whether connections and requests are measured.
    pub requests: bool,
    /// Whether processes are to be found, of all programs.
    pub discovery: bool,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { targets: 1, ring_bytes: 1 << 22, requests: false, discovery: false }
    }
}

/// Global of the object, and where BTF tells its value. The first path that the kernel has is taken.
const OFFSETS: &[(&str, &[&str])] = &[
    ("TASK_PID", &["task_struct.pid"]),
    ("TASK_TGID", &["task_struct.tgid"]),
    ("TASK_STATE", &["task_struct.__state", "task_struct.state"]),
    ("TASK_SIGNAL", &["task_struct.signal"]),
    ("TASK_FLAGS", &["task_struct.flags"]),
    ("TASK_FILES", &["task_struct.files"]),
    ("TASK_NVCSW", &["task_struct.nvcsw"]),
    ("TASK_SUM_EXEC_RUNTIME", &["task_struct.se.sum_exec_runtime"]),
    ("TASK_FSBASE", &["task_struct.thread.fsbase"]),
    ("SIGNAL_LIVE", &["signal_struct.live"]),
    ("FILES_FDT", &["files_struct.fdt"]),
    ("FDTABLE_FD", &["fdtable.fd"]),
    ("FILE_PRIVATE_DATA", &["file.private_data"]),
    ("FILE_INODE", &["file.f_inode"]),
    ("INODE_MODE", &["inode.i_mode"]),
    ("SOCKET_SK", &["socket.sk"]),
    ("SOCK_NUM", &["sock.__sk_common.skc_num"]),
    ("SOCK_STATE", &["sock.__sk_common.skc_state"]),
    ("SOCK_COOKIE", &["sock.__sk_common.skc_cookie"]),
    ("SOCK_ACK_BACKLOG", &["sock.sk_ack_backlog"]),
    ("SOCK_FAMILY", &["sock.__sk_common.skc_family"]),
    ("SOCK_SOCKET", &["sock.sk_socket"]),
    ("SOCK_RECEIVE_QUEUE", &["sock.sk_receive_queue"]),
    ("SOCK_RECEIVE_QUEUE_LENGTH", &["sock.sk_receive_queue.qlen"]),
    ("SK_BUFF_PREV", &["sk_buff.prev"]),
    ("SK_BUFF_SK", &["sk_buff.sk"]),
    ("REGS_DI", &["pt_regs.di"]),
    ("REGS_DX", &["pt_regs.dx"]),
    ("REGS_ORIG_AX", &["pt_regs.orig_ax"]),
    ("REGS_SI", &["pt_regs.si"]),
    ("REGS_R10", &["pt_regs.r10"]),
    ("REGS_CS", &["pt_regs.cs"]),
    ("REGS_SP", &["pt_regs.sp"]),
    ("REGS_IP", &["pt_regs.ip"]),
];

/// The loaded object, and what the kernel that it was loaded into can do.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    /// What this kernel can do.
    pub features: Features,
    /// By which ways signals are measured.
    pub signals: Signals,
    /// The programs for multi links, loaded when they are first wanted.
    multi: HashMap<&'static str, OwnedFd>,
    /// Maps whose readers take them away, kept by descriptor.
    taken: HashMap<&'static str, OwnedFd>,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    /// What is seen of unix sockets.
    pub unix: UnixHooks,
    /// Whether accepts are seen where the kernel accepts, whoever asked for it.
    pub(super) accepts_by_fentry: bool,
    /// Whether inet_sock_set_state is attached.
    pub(super) state_changes: bool,
    /// Kprobes, which are there for as long as this is.
    pub(super) kprobes: Links,
    /// The process that holds uprobes and clocks, once there are any.
    holder: Option<Arc<Holder>>,
    /// Whether what it takes to load a program was given up.
    unprivileged: bool,
}

impl Kernel {
    /// Reads the kernel's types and loads the object, where [`super::require_permission`] allows. Nothing is attached. `without` are ways that
    /// are not to be used.
    ///
    /// # Errors
    /// BTF is missing, or the kernel refuses the object.
    pub fn load(sizes: Sizes, without: &[Unwanted]) -> Result<Kernel, KernelError> {
        let btf = Btf::of_running_kernel()?;
        let features = Features::probe(&btf);
        let signals = Signals::evaluate(&features, without);
        let mut values: Vec<(&str, u64)> = Vec::with_capacity(OFFSETS.len() + ring::OFFSETS.len() + 7);
        for (global, paths) in OFFSETS {
            let mut offset = btf.offset(paths[0]);
            for path in &paths[1..] {
                offset = offset.or_else(|_| btf.offset(path));
            }
            values.push((global, offset?));
        }
        for (global, path) in ring::OFFSETS {
            // Where one is missing nothing is attached that would use it.
            values.push((global, btf.offset(path).unwrap_or(0)));
        }
        // Unix sockets may be a module, whose types are not here.
        values.push(("UNIX_PEER", btf.offset("unix_sock.peer").unwrap_or(0)));
        values.push(("UNIX_ADDR", btf.offset("unix_sock.addr").unwrap_or(0)));
        let (byte, mask) = btf.bit("task_struct.in_iowait")?;
        values.extend([("TASK_IN_IOWAIT", byte), ("TASK_IN_IOWAIT_MASK", mask)]);
        values.push(("NEVER", 0));
        values.push(("RING_WAKEUP_BYTES", u64::from(sizes.ring_bytes / 4)));
        values.push(("REQUESTS_WANTED", u64::from(sizes.requests)));
        values.push(("DISCOVERY_WANTED", u64::from(sizes.discovery)));
        drop(btf);
        let mut loader = EbpfLoader::new();
        for (global, value) in &values {
            loader.override_global(global, value, true);
        }
        for per_target in ["SCHED", "COSTS", "TYPE_KEYS"] {
            loader.map_max_entries(per_target, sizes.targets.max(1));
        }
        loader.map_max_entries("DURATIONS", sizes.targets.max(1) * DURATION_KINDS);
        if sizes.requests {
            for &(map, entries) in request::SIZES {
                loader.map_max_entries(map, entries);
            }
            loader.map_max_entries("REQUESTS", sizes.targets.max(1));
        }
        if sizes.discovery {
            for &(map, entries) in discovery::SIZES {
                loader.map_max_entries(map, entries);
            }
        }
        loader.map_max_entries(RING, sizes.ring_bytes);
        let mut ebpf = loader.load(OBJECT)?;
        let mut taken = HashMap::new();
        for name in [RING, LOG] {
            let Some(Map::RingBuf(ring)) = ebpf.map(name) else { return Err(KernelError::Missing(name)) };
            let ring = ring.fd().as_fd().try_clone_to_owned().map_err(|source| KernelError::System {
                what: format!("duplicate the descriptor of map {name}"),
                source,
            })?;
            taken.insert(name, ring);
        }
        // What the kernel half says in words is a help, and not needed to measure.
        let log = EbpfLogger::init(&mut ebpf).inspect_err(|e| log::warn!("the kernel half is mute: {e}")).ok();
        Ok(Kernel {
            ebpf,
            features,
            signals,
            multi: HashMap::new(),
            taken,
            log,
            unix: UnixHooks::default(),
            accepts_by_fentry: false,
            state_changes: false,
            kprobes: Links::default(),
            holder: None,
            unprivileged: false,
        })
    }

    /// The process that holds uprobes.
    pub(super) fn holder(&mut self) -> Result<Arc<Holder>, KernelError> {
        if let Some(holder) = &self.holder {
            return Ok(Arc::clone(holder));
        }
        let started = Holder::start().map_err(|source| KernelError::System {
            what: "start the process that holds the probes".to_owned(),
            source,
        })?;
        Ok(Arc::clone(self.holder.insert(started)))
    }

    /// Starts the process that holds uprobes, while it is still permitted what that takes.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_holder(&mut self) -> Result<(), KernelError> {
        self.holder().map(drop)
    }

    /// Gives up the capabilities that only attaching takes: uprobes and clocks are attached by the process that holds them.
    /// What is read of the targets goes on, and so do the maps: where the kernel permits their use to no process without
    /// CAP_BPF, that is kept.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn give_up_capabilities(&mut self) -> Result<(), KernelError> {
        let system = |source| KernelError::System { what: "give up capabilities".to_owned(), source };
        // Whether maps can be used is tried by a thread that has given up already.
        let tried = std::thread::scope(|scope| {
            let trying = scope.spawn(|| {
                capability::keep_only(|capability| capability.lasting, false)?;
                Ok::<bool, std::io::Error>(self.counters().is_ok())
            });
            trying.join().unwrap_or(Ok(false))
        });
        let usable = tried.map_err(system)?;
        capability::keep_only(|c| c.lasting || (!usable && c.name == "CAP_BPF"), false).map_err(system)?;
        self.unprivileged = true;
        Ok(())
    }

    /// Checks that what was attached still is.
    ///
    /// # Errors
    /// The process that holds the uprobes has ended.
    pub fn check_probes(&self) -> Result<(), KernelError> {
        let ended = self.holder.as_ref().is_some_and(|holder| !holder.is_running());
        if ended { Err(KernelError::HolderEnded) } else { Ok(()) }
    }

    /// Passes on what the kernel half has said in words.
    pub fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// The uprobe program `name`, loaded for single perf-event uprobes.
    pub(super) fn single_program(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, KernelError> {
        let failed = |source| KernelError::Program { program: name, source };
        let program: &mut UProbe =
            self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?.try_into().map_err(failed)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        Ok(program.fd().map_err(failed)?.as_fd())
    }

    /// The uprobe program `name`, loaded for multi links. aya 0.14 cannot ask for their attach type, so the object is
    /// parsed again and relocated against the maps that aya has made.
    pub(super) fn multi_program(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, KernelError> {
        if !self.multi.contains_key(name) {
            let program = self.load_multi(name)?;
            self.multi.insert(name, program);
        }
        Ok(self.multi[name].as_fd())
    }

    fn load_multi(&self, name: &'static str) -> Result<OwnedFd, KernelError> {
        let broken = |_| KernelError::Missing(name);
        let mut object = aya_obj::Object::parse(OBJECT).map_err(broken)?;
        let maps: HashMap<String, aya_obj::Map> = object.maps.drain().collect();
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let descriptors: Vec<(&str, i32, &aya_obj::Map)> = maps
            .iter()
            .filter_map(|(map, definition)| Some((map.as_str(), self.descriptor(map)?, definition)))
            .collect();
        object.relocate_maps(descriptors.into_iter(), &text).map_err(|_| KernelError::Missing(name))?;
        object.relocate_calls(&text).map_err(|_| KernelError::Missing(name))?;
        let program = object.programs.get(name).ok_or(KernelError::Missing(name))?;
        let function = object.functions.get(&program.function_key()).ok_or(KernelError::Missing(name))?;
        // SAFETY: `bpf_insn` is a plain 8-byte structure of the kernel's ABI.
        let instructions: Vec<[u8; 8]> =
            function.instructions.iter().map(|i| unsafe { std::mem::transmute_copy::<_, [u8; 8]>(i) }).collect();
        let license: CString = object.license.clone();
        bpf::load_uprobe_multi(name, &instructions, &license).map_err(|source| KernelError::System {
            what: format!("load program {name} for uprobe_multi{}", self.remedy()),
            source,
        })
    }

    /// What helps where a program can no longer be loaded or attached.
    pub(super) fn remedy(&self) -> &'static str {
        if self.unprivileged {
            " (the capabilities for it were given up after attaching: --keep-capabilities keeps them)"
        } else {
            ""
        }
    }

    fn descriptor(&self, map: &str) -> Option<i32> {
        if let Some(taken) = self.taken.get(map) {
            return Some(taken.as_raw_fd());
        }
        let data = match self.ebpf.map(map)? {
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::PerCpuHashMap(data)
            | Map::ProgramArray(data)
            | Map::RingBuf(data) => data,
            _ => return None,
        };
        Some(data.fd().as_fd().as_raw_fd())
    }
}
