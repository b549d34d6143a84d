//! The way of one task from the store of its vtable to its place on the heap.

use std::collections::{HashSet, VecDeque};

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::super::vtable::{Layout, Vtable};
use crate::runtime::IdPlace;
use crate::target::site::code::{self, Body, immediate};
use crate::target::site::values::{Value, Values};
use crate::target::site::{self, Site};

/// Instructions that are followed from one reference, over all branches.
const MAX_STEPS: usize = 4000;
/// Instructions of one path.
const MAX_LENGTH: usize = 800;
/// Instructions that are followed behind the copy.
const MAX_BEHIND: usize = 48;
/// Instructions between the allocation and the reference.
const MAX_AHEAD: usize = 24;
/// Instructions before the reference that may have stored the id.
const MAX_BEFORE: usize = 200;
/// The registers that survive the call of the allocator (System V ABI), so that code outside a loop may set them.
const KEPT_BY_CALLS: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// What a path led to.
pub(super) struct Found {
    /// The site, and the new task's address.
    pub(super) site: Site,
    /// Whether the creation of other types may pass it too.
    pub(super) shared: bool,
    /// Where the id is.
    pub(super) id: IdPlace,
    /// Whether the task is complete there, so that its vtable can be read.
    pub(super) built: bool,
}

/// Where the task is built: a place in the stack frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// Distance from the stack pointer at the beginning of the path.
    Stack(i64),
    /// Distance from the frame pointer.
    Base(i64),
}

impl Frame {
    fn plus(self, offset: i64) -> Option<Frame> {
        Some(match self {
            Frame::Stack(at) => Frame::Stack(at.checked_add(offset)?),
            Frame::Base(at) => Frame::Base(at.checked_add(offset)?),
        })
    }

    /// The distance of `self` from `from`, where both are relative to the same register.
    fn since(self, from: Frame) -> Option<i64> {
        match (self, from) {
            (Frame::Stack(a), Frame::Stack(b)) | (Frame::Base(a), Frame::Base(b)) => a.checked_sub(b),
            _ => None,
        }
    }
}

/// One way through the code.
#[derive(Clone)]
pub(super) struct Path<'b> {
    body: &'b Body,
    layout: Layout,
    /// Offset of the id from the task.
    id: Option<i64>,
    /// A lower limit of the task's size.
    least: u64,
    values: Values,
    /// The vtable's address.
    vtable: Vec<Value>,
    /// Places where a task with this vtable is being built.
    images: Vec<Frame>,
    /// Values that are addresses in the frame.
    pointers: Vec<(Value, Frame)>,
    /// Values that are constants.
    constants: Vec<(Value, u64)>,
    /// Words that were loaded from the frame, in general registers.
    words: Vec<(Value, Frame)>,
    /// The same in vector registers, by number.
    vectors: Vec<(usize, Frame)>,
    /// Indices of the instructions passed.
    passed: Vec<usize>,
    /// Emulated instructions passed: position in `passed`, and the state when it was reached.
    emulated: Vec<(usize, Values)>,
    /// Stores into the frame: position in `passed`, place and size.
    stored: Vec<(usize, Frame, i64)>,
}

/// What an instruction does to the task.
enum Event {
    /// Nothing that ends the path.
    None,
    /// The task is now, at least in part, at this address on the heap.
    Copied(Value),
}

impl<'b> Path<'b> {
    /// Follows the code from instruction `start`, which loads the address of `vtable`: all creations that it leads to.
    /// `None` where one of them was seen, but has no site.
    pub(super) fn find(body: &'b Body, start: usize, layout: Layout, vtable: &Vtable) -> Option<Vec<Found>> {
        let mut first = Path {
            body,
            layout,
            id: vtable.id.and_then(|id| i64::try_from(id).ok()),
            least: vtable.trailer.unwrap_or_else(|| u64::from(layout.vtable_in_header) + 16),
            values: Values::new(),
            vtable: Vec::new(),
            images: Vec::new(),
            pointers: Vec::new(),
            constants: Vec::new(),
            words: Vec::new(),
            vectors: Vec::new(),
            passed: Vec::new(),
            emulated: Vec::new(),
            stored: Vec::new(),
        };
        first.stored_before(start);
        let load = &body.instructions[start];
        first.passed.push(start);
        match load.op0_kind() {
            OpKind::Register => {
                first.values.step(load);
                first.vtable.push(first.values.of(load.op0_register().full_register())?);
            }
            // A fixed address, stored directly.
            _ => {
                if let Event::Copied(task) = first.vtable_stored(load) {
                    return first.site(task).map(|found| vec![found]);
                }
            }
        }
        let mut seen = HashSet::new();
        let mut open = vec![(first, start + 1)];
        let mut steps = 0;
        let mut found = Vec::new();
        while let Some((mut path, mut index)) = open.pop() {
            while let Some(instruction) = body.instructions.get(index) {
                steps += 1;
                if steps > MAX_STEPS || path.passed.len() > MAX_LENGTH || !seen.insert(index) {
                    break;
                }
                if site::is_emulated(instruction) {
                    path.emulated.push((path.passed.len(), path.values.clone()));
                }
                path.passed.push(index);
                if let Event::Copied(task) = path.follow(instruction) {
                    found.push(path.site(task)?);
                    break;
                }
                match instruction.flow_control() {
                    FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => index += 1,
                    FlowControl::ConditionalBranch => {
                        if let Some(target) = code::branch(instruction).and_then(|to| body.index_of(to)) {
                            open.push((path.clone(), target));
                        }
                        index += 1;
                    }
                    FlowControl::UnconditionalBranch => {
                        let Some(target) = code::branch(instruction).and_then(|to| body.index_of(to)) else { break };
                        index = target;
                    }
                    _ => break,
                }
            }
        }
        Some(found).filter(|found| !found.is_empty())
    }

    /// Notes which parts of the frame were stored shortly before the path.
    fn stored_before(&mut self, start: usize) {
        for instruction in &self.body.instructions[start.saturating_sub(MAX_BEFORE)..start] {
            if instruction.op0_kind() == OpKind::Memory
                && is_move(instruction)
                && let Some(place) = self.frame(instruction)
            {
                self.stored.push((0, place, instruction.memory_size().size() as i64));
            }
        }
    }

    fn follow(&mut self, instruction: &Instruction) -> Event {
        let calls = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        let moves = instruction.is_string_instruction()
            && matches!(instruction.mnemonic(), Mnemonic::Movsq | Mnemonic::Movsb | Mnemonic::Movsd);
        if calls || moves {
            let event = self.copied_whole(instruction);
            self.values.step(instruction);
            self.vectors.clear();
            return event;
        }
        let event = if is_move(instruction) && instruction.op0_kind() == OpKind::Memory {
            self.store(instruction)
        } else {
            Event::None
        };
        let loaded = (is_move(instruction) && instruction.op1_kind() == OpKind::Memory)
            .then(|| self.frame(instruction))
            .flatten();
        let pointer = self.pointer(instruction);
        let target = instruction.op0_register();
        if target.is_xmm() || target.is_ymm() || target.is_zmm() {
            self.vectors.retain(|&(number, _)| number != target.number());
            if let Some(place) = loaded {
                self.vectors.push((target.number(), place));
            }
        }
        self.values.step(instruction);
        if instruction.op0_kind() == OpKind::Register
            && let Some(value) = self.values.of(target.full_register())
        {
            if let Some(place) = loaded {
                self.words.push((value, place));
                // A vtable that was kept in the frame for later.
                let kept = place.plus(-i64::from(self.layout.vtable_in_header));
                if target.is_gpr64() && kept.is_some_and(|image| self.images.contains(&image)) {
                    self.vtable.push(value);
                }
            }
            if let Some(place) = pointer {
                self.pointers.push((value, place));
            }
            if instruction.mnemonic() == Mnemonic::Mov
                && let Some(constant) = immediate(instruction)
            {
                self.constants.push((value, constant));
            }
        }
        event
    }

    fn store(&mut self, instruction: &Instruction) -> Event {
        let place = self.frame(instruction);
        if let Some(place) = place {
            self.stored.push((self.passed.len(), place, instruction.memory_size().size() as i64));
        }
        let register = instruction.op1_register();
        if instruction.op1_kind() == OpKind::Register
            && self.values.of(register).is_some_and(|value| self.vtable.contains(&value))
        {
            return self.vtable_stored(instruction);
        }
        if let Some(place) = place {
            self.overwritten(place, instruction.memory_size().size() as i64);
        }
        if place.is_some() || instruction.memory_index() != Register::None {
            return Event::None;
        }
        // A piece of the task that goes to the same offset from some other register.
        let source = if register.is_gpr() {
            let value = self.values.of(register.full_register());
            self.words.iter().rev().find(|&&(word, _)| Some(word) == value).map(|&(_, from)| from)
        } else {
            self.vectors.iter().find(|&&(number, _)| number == register.number()).map(|&(_, from)| from)
        };
        let offset = instruction.memory_displacement64() as i64;
        let same = source.is_some_and(|from| self.images.iter().any(|&image| from.since(image) == Some(offset)));
        let header = i64::from(self.layout.vtable_in_header) + 16;
        match self.values.of(instruction.memory_base()) {
            // Only the header's own words are surely the task's.
            Some(task) if same && (0..header).contains(&offset) => Event::Copied(task),
            _ => Event::None,
        }
    }

    /// The vtable's address is stored: the task is there.
    fn vtable_stored(&mut self, instruction: &Instruction) -> Event {
        let offset = i64::from(self.layout.vtable_in_header);
        if let Some(place) = self.frame(instruction) {
            self.images.extend(place.plus(-offset));
            return Event::None;
        }
        let whole =
            instruction.memory_index() == Register::None && instruction.memory_displacement64() as i64 == offset;
        match self.values.of(instruction.memory_base()) {
            Some(task) if whole => Event::Copied(task),
            _ => Event::None,
        }
    }

    /// Something else was stored where the vtable's address was: another task is being built there.
    fn overwritten(&mut self, place: Frame, size: i64) {
        let offset = i64::from(self.layout.vtable_in_header);
        self.images.retain(|image| {
            let vtable = image.plus(offset);
            !vtable.and_then(|vtable| vtable.since(place)).is_some_and(|distance| -8 < distance && distance < size)
        });
    }

    /// A call, or a string instruction: `memcpy(rdi, rsi, size)` of the task.
    fn copied_whole(&mut self, instruction: &Instruction) -> Event {
        let (Some(to), Some(from)) = (self.values.of(Register::RDI), self.values.of(Register::RSI)) else {
            return Event::None;
        };
        // A function that only looks at what is in the frame is told no size, or that of something else.
        let (register, unit) = match instruction.mnemonic() {
            Mnemonic::Movsq => (Register::RCX, 8),
            Mnemonic::Movsd => (Register::RCX, 4),
            Mnemonic::Movsb => (Register::RCX, 1),
            _ => (Register::RDX, 1),
        };
        let size = self.values.of(register).and_then(|count| self.constant(count)).and_then(|n| n.checked_mul(unit));
        let whole = size.is_some_and(|size| size >= self.least);
        if !whole || !self.place(from).is_some_and(|from| self.images.contains(&from)) {
            return Event::None;
        }
        match self.place(to) {
            // Moved within the frame.
            Some(to) => {
                self.images.push(to);
                Event::None
            }
            None => Event::Copied(to),
        }
    }

    /// The place in the frame whose address `value` is.
    fn place(&self, value: Value) -> Option<Frame> {
        let known = self.pointers.iter().rev().find(|&&(known, _)| known == value).map(|&(_, place)| place);
        known.or_else(|| self.origins(value).into_iter().find_map(|origin| self.pointer(origin)))
    }

    /// The constant that `value` is.
    fn constant(&self, value: Value) -> Option<u64> {
        let known = self.constants.iter().rev().find(|&&(known, _)| known == value).map(|&(_, constant)| constant);
        known.or_else(|| self.origins(value).into_iter().filter(|i| i.mnemonic() == Mnemonic::Mov).find_map(immediate))
    }

    /// The instructions ahead of the path that may have made `value`, the nearest first: what a loop needs each time
    /// is made once, outside of it.
    fn origins(&self, value: Value) -> Vec<&'b Instruction> {
        let register = Values::new().register(value).filter(|register| KEPT_BY_CALLS.contains(register));
        let (Some(register), Some(&start)) = (register, self.passed.first()) else { return Vec::new() };
        let code = &self.body.instructions;
        let mut found = Vec::new();
        let mut seen = HashSet::from([start]);
        let mut open = VecDeque::from([start]);
        while let Some(index) = open.pop_front() {
            let before = index.checked_sub(1).filter(|&before| runs_on(&code[before]));
            let branches = self.body.sources(code[index].ip()).filter_map(|source| self.body.index_of(source));
            for ahead in before.into_iter().chain(branches) {
                if seen.len() >= MAX_STEPS || !seen.insert(ahead) {
                    continue;
                }
                if sets(&code[ahead], register) {
                    found.push(&code[ahead]);
                } else {
                    open.push_back(ahead);
                }
            }
        }
        found
    }

    /// The site for the task at `task`, known since the last instruction passed.
    fn site(&self, task: Value) -> Option<Found> {
        let shared = self.joined(1, self.passed.len());
        let before = self.before(task).filter(|_| !shared);
        if let Some(found) = &before
            && (found.id != IdPlace::Nowhere || self.id.is_none())
        {
            return before;
        }
        self.behind(task, shared).or(before).or_else(|| self.ahead().filter(|_| !shared))
    }

    /// The last emulated instruction ahead of the path, where the task is built on the heap at once: the check of the
    /// allocator's answer. The id is then in the register from which it will be stored.
    fn ahead(&self) -> Option<Found> {
        let code = &self.body.instructions;
        let (start, store) = (*self.passed.first()?, *self.passed.last()?);
        let straight = self.passed.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let from = (start.saturating_sub(MAX_AHEAD)..start).rev().find(|&index| site::is_emulated(&code[index]))?;
        let between = &code[from + 1..start];
        let branched = self.body.is_joined(code[from].ip(), code[start].ip());
        if !straight || branched || between.iter().any(|i| i.flow_control() != FlowControl::Next) {
            return None;
        }
        let begin = Values::new();
        let mut values = begin.clone();
        code[from..store].iter().for_each(|instruction| values.step(instruction));
        let task = values.of(code[store].memory_base())?;
        let argument = site::argument(begin.register(task)?)?;
        let site = Site { address: code[from].ip(), argument, displacement: 0, emulated: true };
        let id = self.stored_id(&begin, values, task, from, store);
        Some(Found { site, shared: false, id, built: false })
    }

    /// The register that held the id when the path to `from` began, by the store that follows `store`.
    fn stored_id(&self, begin: &Values, mut values: Values, task: Value, from: usize, store: usize) -> IdPlace {
        let code = &self.body.instructions;
        let mut earlier = begin.clone();
        for (index, instruction) in code.iter().enumerate().take(store + MAX_BEHIND).skip(from) {
            // The id may be stored on either side of the vtable.
            let state = if index < store { &mut earlier } else { &mut values };
            let place = instruction.memory_displacement64() as i64;
            let stores = instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_kind() == OpKind::Memory
                && instruction.op1_register().is_gpr64()
                && instruction.memory_index() == Register::None
                && Some(place) == self.id
                && state.of(instruction.memory_base()) == Some(task);
            if stores {
                let register = state.of(instruction.op1_register()).and_then(|id| begin.register(id));
                return register.and_then(site::argument).map_or(IdPlace::Nowhere, IdPlace::Register);
            }
            if index > from && instruction.flow_control() != FlowControl::Next {
                break;
            }
            state.step(instruction);
        }
        IdPlace::Nowhere
    }

    /// The last emulated instruction before the copy at which a register holds the task's address.
    fn before(&self, task: Value) -> Option<Found> {
        let (position, values) = self.emulated.iter().rev().find(|(_, values)| values.register(task).is_some())?;
        let address = self.body.instructions[self.passed[*position]].ip();
        let site = Site { address, argument: site::argument(values.register(task)?)?, displacement: 0, emulated: true };
        let id = self.images.iter().find_map(|image| {
            let id = image.plus(self.id?)?;
            self.is_stored(id, *position).then_some(())?;
            Some(match id {
                Frame::Stack(at) => IdPlace::Stack(i16::try_from(at.checked_sub(values.stack())?).ok()?),
                Frame::Base(at) => IdPlace::Frame(i16::try_from(at).ok()?),
            })
        });
        Some(Found { site, shared: false, id: id.unwrap_or(IdPlace::Nowhere), built: false })
    }

    /// The first emulated instruction behind the copy: all of the task is on the heap.
    fn behind(&self, task: Value, shared: bool) -> Option<Found> {
        let last = *self.passed.last()?;
        let mut values = self.values.clone();
        for instruction in self.body.instructions.get(last + 1..)?.iter().take(MAX_BEHIND) {
            if site::is_emulated(instruction) {
                if self.body.is_joined(self.body.instructions[last].ip(), instruction.ip()) {
                    return None;
                }
                let site = site::at(&values, task, instruction.ip())?;
                let told = self.id.and_then(|id| i16::try_from(id).ok());
                // A shared site must read the vtable, and then finds the id by it.
                let id = match told {
                    Some(_) if shared => IdPlace::Vtable,
                    told => told.map_or(IdPlace::Nowhere, IdPlace::Task),
                };
                return Some(Found { site, shared, id, built: true });
            }
            if !matches!(instruction.flow_control(), FlowControl::Next | FlowControl::IndirectCall) {
                return None;
            }
            values.step(instruction);
        }
        None
    }

    /// Whether the eight bytes at `place` were stored before the path reached `position`.
    fn is_stored(&self, place: Frame, position: usize) -> bool {
        self.stored.iter().any(|&(at, from, size)| {
            at <= position && place.since(from).is_some_and(|distance| distance >= 0 && distance + 8 <= size)
        })
    }

    /// Whether other code leads into the path, between its positions `from` and `to`.
    fn joined(&self, from: usize, to: usize) -> bool {
        (from..to).any(|position| {
            let (own, index) = (self.passed[position - 1], self.passed[position]);
            let code = &self.body.instructions;
            let branched = self.body.sources(code[index].ip()).any(|source| source != code[own].ip());
            // After a jump, what stands in front of its target may run into it. Calls that never return look as if.
            let before = index.checked_sub(1).filter(|&before| before != own);
            branched || before.is_some_and(|before| runs_on(&code[before]))
        })
    }

    /// The place in the frame that a memory operand names.
    fn frame(&self, instruction: &Instruction) -> Option<Frame> {
        if instruction.memory_index() != Register::None {
            return None;
        }
        let offset = instruction.memory_displacement64() as i64;
        match instruction.memory_base() {
            Register::RSP => self.values.stack().checked_add(offset).map(Frame::Stack),
            // Above a frame pointer are arguments: a positive offset means an ordinary pointer.
            Register::RBP if offset < 0 => Some(Frame::Base(offset)),
            _ => None,
        }
    }

    /// The place in the frame whose address the instruction makes.
    fn pointer(&self, instruction: &Instruction) -> Option<Frame> {
        match instruction.mnemonic() {
            Mnemonic::Lea => self.frame(instruction),
            Mnemonic::Mov
                if instruction.op0_kind() == OpKind::Register && instruction.op1_register() == Register::RSP =>
            {
                Some(Frame::Stack(self.values.stack()))
            }
            _ => None,
        }
    }
}

/// Whether the instruction behind this one may be the next.
fn runs_on(instruction: &Instruction) -> bool {
    !matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
            | FlowControl::Interrupt
    )
}

/// Whether an instruction writes to a general register that calls keep: no multiplication or the like does so unasked.
fn sets(instruction: &Instruction, register: Register) -> bool {
    let is = |operand: Register| operand.full_register() == register;
    match instruction.mnemonic() {
        Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt | Mnemonic::Push => false,
        Mnemonic::Xchg | Mnemonic::Xadd if is(instruction.op1_register()) => true,
        _ => instruction.op0_kind() == OpKind::Register && is(instruction.op0_register()),
    }
}

fn is_move(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Mov
            | M::Movups
            | M::Movaps
            | M::Movdqa
            | M::Movdqu
            | M::Movupd
            | M::Movapd
            | M::Movq
            | M::Vmovups
            | M::Vmovaps
            | M::Vmovdqa
            | M::Vmovdqu
    )
}
