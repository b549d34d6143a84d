//! A small reader of the kernel's BTF: member offsets through anonymous members, and tracepoint arities.
//! The format is in the kernel's Documentation/bpf/btf.rst. Never a program, never a map.

use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use super::KernelError;

/// Where the kernel publishes its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;
/// Anonymous members nest only a few deep; a cycle would be a broken file.
const MAX_NESTING: usize = 16;

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// The kernel's types.
pub struct Btf {
    data: Vec<u8>,
    /// Position of each type's record; index 0 is `void`.
    types: Vec<u32>,
    strings: usize,
    /// (hash of kind and name, type id), sorted: the names are looked up in the data.
    index: Vec<(u32, u32)>,
}

struct Type {
    kind: u32,
    vlen: usize,
    flag: bool,
    name: u32,
    size_or_type: u32,
    /// Position of what follows the record.
    body: usize,
}

impl Btf {
    /// Reads the running kernel's types.
    ///
    /// # Errors
    /// The kernel publishes none, or they are malformed.
    pub fn of_running_kernel() -> Result<Btf, KernelError> {
        let path = Path::new(VMLINUX);
        match fs::read(path) {
            Ok(data) => Btf::parse(data),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(KernelError::NoBtf { path: PathBuf::from(path) }),
            Err(source) => Err(KernelError::Read { path: PathBuf::from(path), source }),
        }
    }

    /// Reads types from the bytes of a BTF file of this machine's byte order.
    ///
    /// # Errors
    /// The bytes are no BTF, or contradict themselves.
    pub fn parse(data: Vec<u8>) -> Result<Btf, KernelError> {
        let malformed = |reason| KernelError::Btf { what: "the type section".into(), reason };
        let word = |at: usize| read_u32(&data, at);
        if data.len() < HEADER_LEN || u16::from_ne_bytes([data[0], data[1]]) != MAGIC {
            return Err(malformed("no BTF header"));
        }
        let header = word(4).ok_or_else(|| malformed("no BTF header"))? as usize;
        let field = |at: usize| word(at).map(|v| v as usize).ok_or_else(|| malformed("no BTF header"));
        let (type_off, type_len, str_off) = (field(8)?, field(12)?, field(16)?);
        let end = header + type_off + type_len;
        if end > data.len() || header + str_off > data.len() {
            return Err(malformed("a section ends after the file"));
        }
        let mut btf = Btf { types: vec![0], strings: header + str_off, index: Vec::new(), data };
        let mut at = header + type_off;
        while at + TYPE_LEN <= end {
            let id = btf.types.len() as u32;
            btf.types.push(at as u32);
            let ty = btf.ty(id).ok_or_else(|| malformed("a type ends after the section"))?;
            if let Some(name) = btf.string(ty.name).filter(|name| !name.is_empty()) {
                btf.index.push((hash(ty.kind, name), id));
            }
            let extra = match ty.kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => MEMBER_LEN * ty.vlen,
                kind::ENUM | kind::FUNC_PROTO => 8 * ty.vlen,
                _ => 0,
            };
            at += TYPE_LEN + extra;
        }
        btf.index.sort_unstable();
        Ok(btf)
    }

    /// Number of types.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether there is no type but `void`.
    pub fn is_empty(&self) -> bool {
        self.types.len() <= 1
    }

    /// Offset in bytes of a member given as `struct.member.member`; anonymous members are looked through.
    ///
    /// # Errors
    /// There is no such struct or member, or it is a bit field.
    pub fn offset(&self, path: &str) -> Result<u64, KernelError> {
        let bits = self.bits(path)?;
        if bits % 8 != 0 {
            return Err(KernelError::Btf { what: format!("`{path}`"), reason: "a bit field" });
        }
        Ok(bits / 8)
    }

    /// Where a member of one bit is: the offset of its byte, and the byte with this bit set.
    ///
    /// # Errors
    /// There is no such struct or member.
    pub fn bit(&self, path: &str) -> Result<(u64, u64), KernelError> {
        let bits = self.bits(path)?;
        Ok((bits / 8, 1 << (bits % 8)))
    }

    fn bits(&self, path: &str) -> Result<u64, KernelError> {
        let missing = |reason| KernelError::Btf { what: format!("`{path}`"), reason };
        let mut parts = path.split('.');
        let name = parts.next().unwrap_or_default();
        let mut id = self.find(kind::STRUCT, name).ok_or_else(|| missing("no such struct"))?;
        let mut bits = 0;
        for part in parts {
            let (offset, member) = self.member(id, part, 0).ok_or_else(|| missing("no such member"))?;
            bits += offset;
            id = member;
        }
        Ok(bits)
    }

    /// Number of arguments of a BTF tracepoint; `None` when the kernel has no such tracepoint.
    pub fn tracepoint_arity(&self, name: &str) -> Option<usize> {
        let typedef = self.ty(self.find(kind::TYPEDEF, &format!("btf_trace_{name}"))?)?;
        let pointer = self.ty(typedef.size_or_type).filter(|t| t.kind == kind::PTR)?;
        let prototype = self.ty(pointer.size_or_type).filter(|t| t.kind == kind::FUNC_PROTO)?;
        // The first parameter is the tracer's own.
        prototype.vlen.checked_sub(1)
    }

    /// Whether the kernel has a function of this name.
    pub fn has_function(&self, name: &str) -> bool {
        self.function(name).is_some()
    }

    /// The number by which programs are loaded for a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.find(kind::FUNC, name)
    }

    /// Number of a function's parameters.
    pub fn parameters(&self, name: &str) -> Option<usize> {
        let function = self.ty(self.function(name)?)?;
        Some(self.ty(function.size_or_type).filter(|t| t.kind == kind::FUNC_PROTO)?.vlen)
    }

    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let wanted = hash(kind, name.as_bytes());
        let start = self.index.partition_point(|&(h, _)| h < wanted);
        self.index[start..]
            .iter()
            .take_while(|&&(h, _)| h == wanted)
            .map(|&(_, id)| id)
            .find(|&id| self.ty(id).is_some_and(|t| t.kind == kind && self.string(t.name) == Some(name.as_bytes())))
    }

    /// Offset in bits and type of a member.
    fn member(&self, id: u32, name: &str, nesting: usize) -> Option<(u64, u32)> {
        let ty = self.ty(self.strip(id)?)?;
        if !matches!(ty.kind, kind::STRUCT | kind::UNION) || nesting > MAX_NESTING {
            return None;
        }
        for at in (0..ty.vlen).map(|i| ty.body + MEMBER_LEN * i) {
            let (member_name, member_type) = (read_u32(&self.data, at)?, read_u32(&self.data, at + 4)?);
            let raw = read_u32(&self.data, at + 8)?;
            let bits = u64::from(if ty.flag { raw & 0x00ff_ffff } else { raw });
            if self.string(member_name)? == name.as_bytes() {
                return Some((bits, member_type));
            }
            if member_name == 0
                && let Some((inner, found)) = self.member(member_type, name, nesting + 1)
            {
                return Some((bits + inner, found));
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_NESTING {
            let ty = self.ty(id)?;
            match ty.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = ty.size_or_type,
                _ => return Some(id),
            }
        }
        None
    }

    fn ty(&self, id: u32) -> Option<Type> {
        let at = *self.types.get(id as usize).filter(|_| id != 0)? as usize;
        let info = read_u32(&self.data, at + 4)?;
        Some(Type {
            kind: (info >> 24) & 0x1f,
            vlen: (info & 0xffff) as usize,
            flag: info >> 31 == 1,
            name: read_u32(&self.data, at)?,
            size_or_type: read_u32(&self.data, at + 8)?,
            body: at + TYPE_LEN,
        })
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let rest = self.data.get(self.strings.checked_add(offset as usize)?..)?;
        rest.split(|&b| b == 0).next()
    }
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn hash(kind: u32, name: &[u8]) -> u32 {
    let mut hasher = rustc_hash::FxHasher::default();
    (kind, name).hash(&mut hasher);
    (hasher.finish() >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn running() -> Btf {
        Btf::of_running_kernel().expect("tests need a kernel with BTF")
    }

    #[test]
    fn members_are_found_through_anonymous_ones() {
        let btf = running();
        // `skc_num` is in an anonymous struct in an anonymous union.
        assert_eq!(btf.offset("sock.__sk_common.skc_num").unwrap(), btf.offset("sock_common.skc_num").unwrap());
        assert_eq!(btf.offset("sock_common.skc_num").unwrap(), btf.offset("sock_common.skc_dport").unwrap() + 2);
    }

    #[test]
    fn offsets_agree_with_the_user_abi() {
        // These layouts are also part of the user ABI, so the truth is known without BTF.
        let btf = running();
        assert_eq!(btf.offset("pt_regs.di").unwrap(), 112);
        assert_eq!(btf.offset("pt_regs.ip").unwrap(), 128);
        assert_eq!(btf.offset("iovec.iov_len").unwrap(), 8);
    }

    #[test]
    fn tracepoints_have_their_arity() {
        let btf = running();
        assert_eq!(btf.tracepoint_arity("sched_wakeup"), Some(1));
        assert_eq!(btf.tracepoint_arity("inet_sock_set_state"), Some(3));
        assert!(matches!(btf.tracepoint_arity("sched_switch"), Some(3 | 4)));
        assert_eq!(btf.tracepoint_arity("no_such_tracepoint"), None);
    }

    #[test]
    fn functions_are_found() {
        let btf = running();
        assert!(btf.has_function("schedule"));
        assert!(!btf.has_function("no_such_function"));
        assert_eq!(btf.parameters("tcp_v4_rcv"), Some(1));
        assert_eq!(btf.parameters("no_such_function"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = running().offset("task_struct.no_such_member").unwrap_err().to_string();
        assert!(message.contains("task_struct.no_such_member"), "{message}");
        assert!(running().offset("no_such_struct.x").is_err());
    }

    #[test]
    fn other_files_are_refused() {
        assert!(Btf::parse(Vec::new()).is_err());
        assert!(Btf::parse(b"\x7fELF and more than a header of it".to_vec()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_file_never_panics(cut in 0usize..200_000, flips in proptest::collection::vec((0usize..200_000, any::<u8>()), 0..20)) {
            let mut data = fs::read(VMLINUX).unwrap();
            data.truncate(cut.max(HEADER_LEN));
            for (at, byte) in flips {
                if let Some(b) = data.get_mut(at) { *b = byte; }
            }
            if let Ok(btf) = Btf::parse(data) {
                let _ = btf.offset("task_struct.pid");
                let _ = btf.tracepoint_arity("sched_switch");
            }
        }
    }
}
