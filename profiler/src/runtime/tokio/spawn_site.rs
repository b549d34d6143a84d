//! Where in the application's sources tasks are spawned. Never where in the code they are created.
//!
//! What spawns is told its caller's place, to panic with when there is no runtime (`#[track_caller]`, a
//! `&'static Location`). Where it is a function of its own, that place is an argument of its call; where it is inlined,
//! the panic stands beside the way to the creation, and is known by the message that it shows.

mod callers;
mod held;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;

use iced_x86::{FlowControl, Instruction, Mnemonic};

use self::callers::Callers;
use self::held::{Held, Value};
use super::location::Location;
use super::name::rust;
use super::reach::Reach;
use super::spawn::{Creations, Origin};
use super::version::position;
use crate::runtime::{SpawnPath, SpawnSite};
use crate::target::elf::Binary;
use crate::target::site::code::{self, Bodies, Body};

/// Calls between the creation of a task and the application's code.
const DEPTH: usize = 8;
/// Frames of a stack that are looked at.
const MAX_FRAMES: usize = 16;
/// Places that are looked at for one creation, over all callers.
const MAX_POINTS: usize = 256;
/// Instructions that are walked back from one place.
const MAX_BACK: usize = 1500;
/// Instructions of a way into a panic.
const MAX_PANIC: usize = 64;
/// Instructions before a call in which its arguments are set.
const MAX_ARGUMENTS: usize = 48;
/// Bytes of code that are decoded in all: a hostile file must not cost seconds.
const MAX_BYTES: u64 = 32 << 20;

/// What spawning without a runtime panics with (`util/error.rs`, `task/local.rs`).
const MESSAGES: [&[u8]; 4] = [
    b"there is no reactor running, must be called from the context of a Tokio 1.x runtime",
    b"The Tokio context thread-local variable has been destroyed.",
    b"`spawn_local` called from outside of a ",
    b"Local tasks can only be spawned on a LocalRuntime from the thread the runtime was created on",
];

/// The spawn sites of each of `types` types, as far as the code tells them.
pub(super) fn by_type<'b, 'data>(
    binary: &'b Binary<'data>,
    reach: &mut Reach<'b, 'data>,
    bodies: &mut Bodies<'b, 'data>,
    creations: &Creations,
    types: usize,
) -> Vec<Vec<SpawnSite>> {
    let mut finder = Finder::new(binary, reach, bodies, &creations.loads);
    let mut found = vec![BTreeSet::new(); types];
    for &origin in &creations.origins {
        found[origin.vtable].extend(finder.places(origin));
    }
    found.into_iter().map(|sites: BTreeSet<SpawnSite>| sites.into_iter().collect()).collect()
}

/// What is known of the instruction at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    /// It is no call on the way.
    Not,
    /// It is a call, if it is one of this function.
    Of(u64),
    /// It was a call.
    By,
}

/// Finds spawn sites in one binary.
pub(super) struct Finder<'a, 'b, 'data> {
    binary: &'b Binary<'data>,
    reach: &'a mut Reach<'b, 'data>,
    bodies: &'a mut Bodies<'b, 'data>,
    /// Instructions that name a vtable, and the index of that: one way never creates two types.
    loads: &'a HashMap<u64, usize>,
    /// The vtables that a function names.
    creators: HashMap<u64, Vec<usize>>,
    /// The messages, and the functions that write them: who refers to one of these panics for want of a runtime.
    panics: HashSet<u64>,
    callers: Option<Callers>,
    returns: HashMap<u64, bool>,
    panicking: HashMap<u64, bool>,
}

impl<'a, 'b, 'data> Finder<'a, 'b, 'data> {
    /// Looks for the messages.
    pub(super) fn new(
        binary: &'b Binary<'data>,
        reach: &'a mut Reach<'b, 'data>,
        bodies: &'a mut Bodies<'b, 'data>,
        loads: &'a HashMap<u64, usize>,
    ) -> Self {
        let panics = panics(binary);
        let mut creators: HashMap<u64, Vec<usize>> = HashMap::new();
        for (&load, &vtable) in loads {
            if let Some(function) = binary.function_at(load) {
                creators.entry(function.start).or_default().push(vtable);
            }
        }
        Finder {
            binary,
            reach,
            bodies,
            loads,
            creators,
            panics,
            callers: None,
            returns: HashMap::new(),
            panicking: HashMap::new(),
        }
    }

    /// The places from which the type of an origin is spawned: all that its creation may come from.
    pub(super) fn places(&mut self, origin: Origin) -> BTreeSet<SpawnSite> {
        let (mut found, mut owners) = (BTreeSet::new(), BTreeSet::new());
        let mut seen = HashSet::new();
        let mut level = vec![(origin.address, Called::Not)];
        for _ in 0..=DEPTH {
            let mut entered = Vec::new();
            for (point, callee) in level {
                let Some(function) = self.binary.function_at(point).map(|function| function.start) else { continue };
                let Some(here) = self.at(point, origin.vtable, callee) else { continue };
                if here.is_empty() && seen.insert(function) {
                    // What names the application's sources is its own code: who calls that is no longer the spawn.
                    match self.owner(function) {
                        Some(owner) => drop(owners.insert(owner)),
                        None => entered.push(function),
                    }
                }
                found.extend(here.into_iter().map(SpawnSite::from));
            }
            let binary = self.binary;
            let callers = self.callers.get_or_insert_with(|| Callers::of(binary));
            level = entered
                .into_iter()
                .flat_map(|function| callers.of_function(function).map(move |point| (point, Called::Of(function))))
                .collect();
            if level.is_empty() || level.len() > MAX_POINTS {
                break;
            }
        }
        if found.is_empty() { owners } else { found }
    }

    /// The place from which a task was spawned on a path that was taken.
    pub(super) fn on_path(&mut self, path: &SpawnPath) -> Option<SpawnSite> {
        let vtable = path.kind.0 as usize;
        for (depth, &frame) in path.frames.iter().enumerate().take(MAX_FRAMES) {
            // A return address is behind its call, and may be another function's.
            let address = if depth == 0 { frame } else { frame.checked_sub(1)? };
            let function = self.binary.function_at(address)?.start;
            let called = if depth == 0 { Called::Not } else { Called::By };
            // Several mean that the ways to this place have joined: it could be any of them.
            let mut places = self.at(address, vtable, called)?.into_iter();
            match (places.next(), places.next()) {
                (Some(place), None) => return Some(place.into()),
                (Some(_), Some(_)) => return None,
                (None, _) => {}
            }
            if let Some(owner) = self.owner(function) {
                return Some(owner);
            }
        }
        None
    }

    /// The function or file that code is from, where it is the application's.
    pub(super) fn owner(&mut self, function: u64) -> Option<SpawnSite> {
        let data = &self.reach.references(function).data;
        let own = data.iter().filter_map(|&at| Location::read(self.binary, at)).filter(Location::is_own);
        let file = own.map(|location| location.file).next()?;
        let name = self.binary.symbols_at(function).map(|symbol| rust::function(symbol.name)).next();
        Some(name.flatten().map_or(SpawnSite::File(file), SpawnSite::Function))
    }

    /// What the code around `address` says of the spawn that passes there; `None` where it does not pass.
    fn at(&mut self, address: u64, vtable: usize, called: Called) -> Option<BTreeSet<Location>> {
        let body = self.body(address)?;
        let point = body.instructions.partition_point(|i| i.ip() <= address).checked_sub(1)?;
        let instruction = &body.instructions[point];
        if let Called::Of(callee) = called
            && self::callee(self.binary, instruction) != Some(callee)
        {
            return None;
        }
        if called != Called::Not
            && let Some(place) = self.argument(&body, point)
        {
            return Some(BTreeSet::from([place]));
        }
        Some(self.before(&body, point, vtable))
    }

    fn body(&mut self, address: u64) -> Option<Rc<Body>> {
        let function = self.binary.function_at(address)?;
        if self.bodies.bytes() > MAX_BYTES {
            return None;
        }
        self.bodies.of(function)
    }

    /// Walks back from a place to the nearest branches beside which a spawn panics, on every way that leads there.
    fn before(&mut self, body: &Body, point: usize, vtable: usize) -> BTreeSet<Location> {
        let code = &body.instructions;
        let mut found = BTreeSet::new();
        let mut seen = HashSet::from([point]);
        let mut open = VecDeque::from([point]);
        while let Some(index) = open.pop_front() {
            let here = code[index].ip();
            let above = index.checked_sub(1).filter(|&above| self.runs_on(body, above));
            let branches: Vec<usize> = body.sources(here).filter_map(|source| body.index_of(source)).collect();
            for ahead in above.into_iter().chain(branches) {
                if seen.len() > MAX_BACK || !seen.insert(ahead) {
                    continue;
                }
                let instruction = &code[ahead];
                if self.creates_other(instruction, vtable) {
                    continue;
                }
                let place = match instruction.flow_control() {
                    FlowControl::ConditionalBranch => {
                        let target = code::branch(instruction).and_then(|to| body.index_of(to));
                        let other = if target == Some(index) { Some(ahead + 1) } else { target };
                        other.and_then(|other| self.panic_at(body, other))
                    }
                    FlowControl::Call | FlowControl::IndirectCall if self.asks(instruction) => {
                        self.argument(body, ahead)
                    }
                    _ => None,
                };
                match place {
                    Some(place) => drop(found.insert(place)),
                    None => open.push_back(ahead),
                }
            }
        }
        found
    }

    /// Whether an instruction has a part in the creation of another type.
    fn creates_other(&self, instruction: &Instruction, vtable: usize) -> bool {
        let creates = callee(self.binary, instruction).and_then(|callee| self.creators.get(&callee));
        self.loads.get(&instruction.ip()).is_some_and(|&other| other != vtable)
            || creates.is_some_and(|others| !others.contains(&vtable))
    }

    /// Whether the instruction behind this one may be the next.
    fn runs_on(&mut self, body: &Body, index: usize) -> bool {
        match body.instructions[index].flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch => true,
            // Only where something else leads to what stands behind can the call be one that never returns.
            FlowControl::Call | FlowControl::IndirectCall => {
                let behind = body.instructions[index].next_ip();
                let callee = callee(self.binary, &body.instructions[index]);
                body.sources(behind).next().is_none() || callee.is_none_or(|callee| self.returns(callee))
            }
            _ => false,
        }
    }

    /// Whether a function may return.
    fn returns(&mut self, entry: u64) -> bool {
        if let Some(&known) = self.returns.get(&entry) {
            return known;
        }
        let returns = self.body(entry).is_none_or(|body| {
            let within = |to: u64| body.index_of(to).is_some();
            body.instructions.iter().any(|instruction| match instruction.flow_control() {
                FlowControl::Return | FlowControl::IndirectBranch => true,
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    code::branch(instruction).is_none_or(|to| !within(to))
                }
                _ => false,
            })
        });
        self.returns.insert(entry, returns);
        returns
    }

    /// Whether a call is one of a function that panics without a runtime, and else returns.
    fn asks(&mut self, instruction: &Instruction) -> bool {
        let Some(callee) = callee(self.binary, instruction) else { return false };
        self.panics(callee) && self.returns(callee)
    }

    /// Whether a function itself panics for want of a runtime.
    fn panics(&mut self, entry: u64) -> bool {
        if let Some(&known) = self.panicking.get(&entry) {
            return known;
        }
        let (binary, panics) = (self.binary, &self.panics);
        let named = |instruction: &Instruction| held::data(binary, instruction).is_some_and(|at| panics.contains(&at));
        let function = binary.function_at(entry).filter(|f| f.start == entry && self.bodies.bytes() <= MAX_BYTES);
        let body = function.and_then(|function| self.bodies.of(function));
        let panics = body.is_some_and(|body| match body.instructions.first() {
            // One function may be another's second name.
            Some(first) if first.flow_control() != FlowControl::Next => {
                let other = callee(binary, first).and_then(|other| binary.function_at(other));
                let other = other.and_then(|other| self.bodies.of(other));
                other.is_some_and(|other| other.instructions.iter().any(named))
            }
            _ => body.instructions.iter().any(named),
        });
        self.panicking.insert(entry, panics);
        panics
    }

    /// The place that is panicked with on the way from an instruction, if that is for want of a runtime.
    fn panic_at(&mut self, body: &Body, start: usize) -> Option<Location> {
        let mut open = vec![(start, Held::new(), false)];
        let mut seen = HashSet::new();
        while let Some((mut index, mut held, mut named)) = open.pop() {
            while let Some(instruction) = body.instructions.get(index) {
                if seen.len() > MAX_PANIC || !seen.insert(index) || self.loads.contains_key(&instruction.ip()) {
                    break;
                }
                named |= held::data(self.binary, instruction).is_some_and(|at| self.panics.contains(&at));
                let calls = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
                if let Some(callee) = callee(self.binary, instruction).filter(|_| calls) {
                    let named = named || self.panics(callee);
                    if named && let Some(place) = self.place(body, start, &held) {
                        return Some(place);
                    }
                    if !self.runs_on(body, index) {
                        break;
                    }
                }
                held.follow(self.binary, instruction);
                let target = code::branch(instruction).and_then(|to| body.index_of(to));
                match (instruction.flow_control(), target) {
                    (FlowControl::UnconditionalBranch, Some(target)) => index = target,
                    (FlowControl::ConditionalBranch, target) => {
                        open.extend(target.map(|target| (target, held.clone(), named)));
                        index += 1;
                    }
                    (FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall, _)
                        if instruction.mnemonic() != Mnemonic::Ud2 =>
                    {
                        index += 1;
                    }
                    _ => break,
                }
            }
        }
        None
    }

    /// The place in the application's sources that is an argument of a call.
    fn argument(&self, body: &Body, call: usize) -> Option<Location> {
        // Up to where other code leads to: what was set before that is looked for on all ways.
        let code = &body.instructions;
        let joined = |index: usize| {
            use FlowControl as F;
            let above = index.checked_sub(1).map(|above| code[above].flow_control());
            let falls = matches!(above, Some(F::Next | F::ConditionalBranch | F::Call | F::IndirectCall));
            !falls || body.sources(code[index].ip()).next().is_some()
        };
        let from = (call.saturating_sub(MAX_ARGUMENTS)..=call).rev().find(|&index| joined(index));
        let from = from.unwrap_or(call.saturating_sub(MAX_ARGUMENTS));
        let mut held = Held::new();
        code[from..call].iter().for_each(|instruction| held.follow(self.binary, instruction));
        self.place(body, from, &held)
    }

    /// The place in the application's sources that registers hold which carry arguments, on a path from `start`.
    fn place(&self, body: &Body, start: usize, held: &Held) -> Option<Location> {
        let own = |at| Location::read(self.binary, at).filter(Location::is_own);
        held.arguments().find_map(|value| match value {
            Value::Data(at) => own(at),
            Value::Entry(register) => {
                let at = held::before(self.binary, body, start, register);
                let first = at.first().copied().and_then(own);
                first.filter(|_| at.iter().all(|&other| other == at[0]))
            }
            Value::Other => None,
        })
    }
}

/// The function that an instruction calls or jumps to, directly or through a word of the global offset table.
fn callee(binary: &Binary<'_>, instruction: &Instruction) -> Option<u64> {
    match instruction.flow_control() {
        FlowControl::IndirectCall | FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
            binary.relocation(instruction.ip_rel_memory_address())
        }
        _ => code::call(instruction).or_else(|| code::branch(instruction)),
    }
}

/// Where the messages are, and the functions that refer to them.
fn panics(binary: &Binary<'_>) -> HashSet<u64> {
    let mut found = HashSet::new();
    for segment in binary.segments.iter().filter(|segment| !segment.writable) {
        let Some(bytes) = binary.bytes(segment.address..segment.address + segment.file_size) else { continue };
        for message in MESSAGES {
            let mut from = 0;
            while let Some(at) = bytes.get(from..).and_then(|rest| position(rest, message)) {
                found.insert(segment.address + (from + at) as u64);
                from += at + message.len();
            }
        }
    }
    let writers = callers::references(binary, &found);
    found.extend(writers.into_iter().filter_map(|at| binary.function_at(at)).map(|function| function.start));
    found
}
