//! Calls that are answered according to their arguments, assembled as a piece
//! of classic BPF that stands before the list of allowed calls.
//!
//! libseccomp compares arguments as 64-bit numbers, but the kernel looks at
//! the lower half of most: a comparison "not equal" that libseccomp offers is
//! passed by a request with a stray upper bit (CVE-2019-10063). Here only the
//! lower 32 bits are looked at. This piece can answer a call or hand it on to
//! the list; it cannot allow one, so that a mistake in it opens nothing.
//!
//! Only the calls with a guard load an argument: the kernel still sees that
//! all others depend on their number alone, and answers them from a bitmap
//! (seccomp_cache_prepare in kernel/seccomp.c).

/// A condition on the lower 32 bits of an argument.
#[derive(Debug, Clone, Copy)]
pub(super) enum Test {
    /// One of these.
    In(&'static [u32]),
    /// None of these.
    NotIn(&'static [u32]),
    /// None of these; the call takes 16 bits (32-bit x86 only).
    NotIn16(&'static [u16]),
    /// At least one of these bits.
    AnyOf(u32),
    /// Whatever it is.
    Always,
}

/// Calls that are answered here when one of their arguments meets its condition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard {
    /// Names of the calls.
    pub(super) calls: &'static [&'static str],
    /// Argument, counted from 0, and condition. One is enough.
    pub(super) tests: &'static [(u8, Test)],
    /// What it is answered with.
    pub(super) answer: Answer,
}

/// What a guarded call is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// An error; 0 is success without effect.
    Errno(u16),
    /// Whatever the filter's listener says (seccomp_unotify(2)); ENOSYS when
    /// there is none.
    Ask,
}

/// One `struct sock_filter`, in the machine's byte order.
pub(super) type Insn = [u8; 8];

// linux/bpf_common.h, linux/filter.h
const LD_ABS: u16 = 0x20;
const ALU_AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;
// linux/seccomp.h
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGS: u32 = 16;

/// Allows what comes this far: for a container without a list.
pub(super) const ALLOW: Insn = {
    let (code, answer) = (RET.to_ne_bytes(), 0x7fff_0000u32.to_ne_bytes());
    [code[0], code[1], 0, 0, answer[0], answer[1], answer[2], answer[3]]
};

fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&code.to_ne_bytes());
    bytes[2] = jt;
    bytes[3] = jf;
    bytes[4..].copy_from_slice(&k.to_ne_bytes());
    bytes
}

/// Offset of an argument's lower half in `struct seccomp_data`.
fn lower_half(arg: u8) -> u32 {
    let upper_first = if cfg!(target_endian = "big") { 4 } else { 0 };
    DATA_ARGS + 8 * u32::from(arg) + upper_first
}

/// The guards of one architecture: its `AUDIT_ARCH_*` token, and the numbers
/// of the guarded calls on it.
pub(super) struct Arch {
    pub(super) token: u32,
    pub(super) guarded: Vec<(u32, Guard)>,
}

/// Assembles the guards. Whatever they do not answer continues with the
/// instruction after the last.
pub(super) fn assemble(arches: &[Arch]) -> Vec<Insn> {
    let mut code = vec![insn(LD_ABS, 0, 0, DATA_ARCH)];
    // Jumps to the end, whose distance is not known yet.
    let mut to_end = Vec::new();
    for arch in arches {
        let mut body = vec![insn(LD_ABS, 0, 0, DATA_NR)];
        let mut ends = Vec::new();
        for (number, guard) in &arch.guarded {
            let block = block(guard);
            // Past the block and the jump to the end after it.
            let past = u8::try_from(block.len() + 1).expect("a guard has a handful of tests");
            body.push(insn(JEQ, 0, past, *number));
            body.extend(block);
            ends.push(body.len());
            body.push(insn(JA, 0, 0, 0));
        }
        ends.push(body.len());
        body.push(insn(JA, 0, 0, 0));
        let past = u32::try_from(body.len()).expect("a few hundred instructions");
        code.push(insn(JEQ, 1, 0, arch.token));
        code.push(insn(JA, 0, 0, past));
        to_end.extend(ends.iter().map(|at| at + code.len()));
        code.extend(body);
    }
    for at in to_end {
        let distance = u32::try_from(code.len() - at - 1).expect("a few hundred instructions");
        code[at] = insn(JA, 0, 0, distance);
    }
    code
}

/// Returns the guard's answer, or falls through.
fn block(guard: &Guard) -> Vec<Insn> {
    let answer = match guard.answer {
        Answer::Errno(errno) => RET_ERRNO | u32::from(errno),
        Answer::Ask => RET_USER_NOTIF,
    };
    let answer = insn(RET, 0, 0, answer);
    let mut code = Vec::new();
    for (arg, test) in guard.tests {
        let load = insn(LD_ABS, 0, 0, lower_half(*arg));
        match test {
            Test::Always => code.push(answer),
            Test::AnyOf(bits) => code.extend([load, insn(JSET, 0, 1, *bits), answer]),
            Test::In(values) => {
                code.push(load);
                for value in *values {
                    code.extend([insn(JEQ, 0, 1, *value), answer]);
                }
            }
            Test::NotIn(values) => {
                code.push(load);
                none_of(&mut code, values.iter().copied(), answer);
            }
            Test::NotIn16(values) => {
                code.extend([load, insn(ALU_AND, 0, 0, 0xffff)]);
                none_of(&mut code, values.iter().copied().map(u32::from), answer);
            }
        }
    }
    code
}

/// Each value that is met jumps over what is left of the test.
fn none_of(code: &mut Vec<Insn>, values: impl ExactSizeIterator<Item = u32>, answer: Insn) {
    let count = values.len();
    for (index, value) in values.enumerate() {
        let past = u8::try_from(count - index).expect("a test has a handful of values");
        code.push(insn(JEQ, past, 0, value));
    }
    code.push(answer);
}
