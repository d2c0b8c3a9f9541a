//! Which queue of a TAP a flow comes to: an eBPF program that hashes the flow.
//!
//! Left alone, the kernel moves a flow to the queue that wrote its other
//! direction last (`tun_automq_select_queue` in drivers/net/tun.c). A flow that
//! moves changes its lane, and overtakes itself there. The program's choice never
//! changes, and is the same for both directions:
//!
//! | frame | hashed |
//! |---|---|
//! | TCP or UDP in IPv4 or IPv6 | addresses and ports |
//! | other IP, fragments, IPv6 with extension headers | addresses |
//! | anything else | MAC addresses |
//!
//! Up to two VLAN tags are skipped, inline or taken out by the kernel alike. A
//! frame that ends too early comes to the first queue.
//!
//! The program reads with `BPF_ABS` and `BPF_IND` (RFC 9669 section 5.5), which
//! turn words into the host's order, keep their context in `R6`, and end the
//! program with 0 behind the frame's end. The kernel calls it with the frame at its
//! Ethernet header and takes the low 16 bits modulo the number of queues
//! (`tun_ebpf_select_queue`).
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::tap::{check, last_errno};

/// Lets the program choose the queue of every frame on the device of `file`.
///
/// # Errors
/// `EPERM` without CAP_BPF where `kernel.unprivileged_bpf_disabled` is set;
/// `ENOSYS` and `EINVAL` by kernels before 4.16 or without eBPF.
pub(super) fn steer_by_flow(file: &OwnedFd) -> Result<(), Errno> {
    let program = load(&program())?;
    let descriptor = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int; the device keeps the program by itself.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const descriptor) })
}

/// From include/uapi/linux/bpf.h, which the libc crate leaves out.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`, as of Linux 4.15.
#[repr(C)]
struct LoadRequest {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

fn load(code: &[Instruction]) -> Result<OwnedFd, Errno> {
    let mut request = LoadRequest {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"MIT OR Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"landbridge_flow\0",
    };
    let size = size_of::<LoadRequest>();
    // SAFETY: the request and what it points at live on; BPF_PROG_LOAD only reads them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut request, size) };
    let descriptor = libc::c_int::try_from(result).map_err(|_| Errno::OVERFLOW)?;
    if descriptor < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

const ETHER_TYPE_OFFSET: i32 = 12;
const ETHER_TYPE_IPV4: i32 = 0x0800;
const ETHER_TYPE_IPV6: i32 = 0x86dd;
const TPIDS: [i32; 2] = [0x8100, 0x88a8];
const PROTOCOLS_WITH_PORTS: [i32; 2] = [libc::IPPROTO_TCP, libc::IPPROTO_UDP];
/// More fragments, and the fragment's offset (RFC 791).
const FRAGMENT_BITS: i32 = 0x3fff;

/// 2³² divided by the golden ratio, as a prime (Knuth, TAOCP volume 3, 6.4).
const MULTIPLIER: u32 = 0x9e37_79b1;
const FOLD_SHIFT: u32 = 15;

/// R0: what was read last; R1: scratch; R6: the context; R7: kept over a read.
const READ: u8 = 0;
const SCRATCH: u8 = 1;
const CONTEXT: u8 = 6;
const KEPT: u8 = 7;
const HASH: u8 = 8;
/// Where the IP header begins, from the frame's first byte.
const PACKET: u8 = 9;

fn program() -> Vec<Instruction> {
    let mut code = vec![
        copy(CONTEXT, SCRATCH),
        set(HASH, 0),
        set(PACKET, ETHER_TYPE_OFFSET + 2),
        load_half(ETHER_TYPE_OFFSET),
    ];
    for _ in 0..2 {
        code.extend(if_read_is(&TPIDS, &[add_constant(PACKET, 4), packet_half(-2)]));
    }
    code.extend(if_read_is(&[ETHER_TYPE_IPV4], &hash_ipv4()));
    code.extend(if_read_is(&[ETHER_TYPE_IPV6], &hash_ipv6()));
    code.extend(hash_pair(load_word(0), load_word(6)));
    code.extend(hash_pair(load_half(4), load_half(10)));
    code.extend(finish());
    code
}

fn hash_ipv4() -> Vec<Instruction> {
    let ports = [
        // The header's length is in words.
        vec![packet_byte(0), and_constant(READ, 0xf), shift_left(READ, 2), add(PACKET, READ)],
        hash_pair(packet_half(0), packet_half(2)),
    ];
    let whole = [vec![packet_byte(9)], if_read_is(&PROTOCOLS_WITH_PORTS, &ports.concat())];
    [
        hash_pair(packet_word(12), packet_word(16)),
        vec![packet_half(6), and_constant(READ, FRAGMENT_BITS)],
        if_read_is(&[0], &whole.concat()),
        finish(),
    ]
    .concat()
}

fn hash_ipv6() -> Vec<Instruction> {
    let addresses = (8..24).step_by(4).map(|at| hash_pair(packet_word(at), packet_word(at + 16)));
    let ports = hash_pair(packet_half(40), packet_half(42));
    [
        addresses.flatten().collect(),
        vec![packet_byte(6)],
        if_read_is(&PROTOCOLS_WITH_PORTS, &ports),
        finish(),
    ]
    .concat()
}

/// Takes two values into the hash, the lower one first: so both directions of a
/// flow have one hash.
fn hash_pair(read_one: Instruction, read_other: Instruction) -> Vec<Instruction> {
    let swap = [copy(SCRATCH, KEPT), copy(KEPT, READ), copy(READ, SCRATCH)];
    [
        vec![read_one, copy(KEPT, READ), read_other],
        vec![jump_if_at_least(READ, KEPT, swap.len())],
        swap.to_vec(),
        fold(KEPT),
        fold(READ),
    ]
    .concat()
}

fn fold(value: u8) -> Vec<Instruction> {
    vec![
        add(HASH, value),
        multiply_constant(HASH, MULTIPLIER.cast_signed()),
        copy(SCRATCH, HASH),
        shift_right(SCRATCH, FOLD_SHIFT as i32),
        exclusive_or(HASH, SCRATCH),
    ]
}

fn finish() -> Vec<Instruction> {
    vec![copy(READ, HASH), exit()]
}

/// Runs `block` only if the value read last is one of `values`.
fn if_read_is(values: &[i32], block: &[Instruction]) -> Vec<Instruction> {
    // A match jumps over the other comparisons and the jump behind them.
    let compare = |(index, &value)| jump_if_equal_constant(READ, value, values.len() - index);
    let mut code: Vec<_> = values.iter().enumerate().map(compare).collect();
    code.push(jump(block.len()));
    code.extend(block);
    code
}

/// `struct bpf_insn` (RFC 9669 section 3.1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Instruction {
    opcode: u8,
    /// Destination and source, four bits each, in the host's order of bits.
    registers: u8,
    offset: i16,
    constant: i32,
}

/// Parts of opcodes (RFC 9669 sections 3.1, 4 and 5).
mod opcode {
    pub(super) const LOAD: u8 = 0x00;
    pub(super) const ALU_32: u8 = 0x04;
    pub(super) const JUMP: u8 = 0x05;
    pub(super) const ALU_64: u8 = 0x07;
    pub(super) const BY_REGISTER: u8 = 0x08;

    pub(super) const ABSOLUTE: u8 = 0x20;
    pub(super) const INDIRECT: u8 = 0x40;
    pub(super) const WORD: u8 = 0x00;
    pub(super) const HALF: u8 = 0x08;
    pub(super) const BYTE: u8 = 0x10;

    pub(super) const ADD: u8 = 0x00;
    pub(super) const MULTIPLY: u8 = 0x20;
    pub(super) const AND: u8 = 0x50;
    pub(super) const SHIFT_LEFT: u8 = 0x60;
    pub(super) const SHIFT_RIGHT: u8 = 0x70;
    pub(super) const EXCLUSIVE_OR: u8 = 0xa0;
    pub(super) const MOVE: u8 = 0xb0;

    pub(super) const ALWAYS: u8 = 0x00;
    pub(super) const EQUAL: u8 = 0x10;
    pub(super) const AT_LEAST: u8 = 0x30;
    pub(super) const EXIT: u8 = 0x90;
}

const fn instruction(opcode: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    Instruction { opcode, registers, offset, constant }
}

/// On 32 bits; the upper half of `to` is zero afterwards.
const fn by_constant(operation: u8, to: u8, constant: i32) -> Instruction {
    instruction(opcode::ALU_32 | operation, to, 0, 0, constant)
}

/// On 32 bits; the upper half of `to` is zero afterwards.
const fn by_register(operation: u8, to: u8, from: u8) -> Instruction {
    instruction(opcode::ALU_32 | opcode::BY_REGISTER | operation, to, from, 0, 0)
}

/// All 64 bits: a register may hold a pointer.
const fn copy(to: u8, from: u8) -> Instruction {
    instruction(opcode::ALU_64 | opcode::BY_REGISTER | opcode::MOVE, to, from, 0, 0)
}

const fn set(to: u8, constant: i32) -> Instruction {
    by_constant(opcode::MOVE, to, constant)
}

const fn add(to: u8, from: u8) -> Instruction {
    by_register(opcode::ADD, to, from)
}

const fn add_constant(to: u8, constant: i32) -> Instruction {
    by_constant(opcode::ADD, to, constant)
}

const fn multiply_constant(to: u8, constant: i32) -> Instruction {
    by_constant(opcode::MULTIPLY, to, constant)
}

const fn and_constant(to: u8, constant: i32) -> Instruction {
    by_constant(opcode::AND, to, constant)
}

const fn shift_left(to: u8, bits: i32) -> Instruction {
    by_constant(opcode::SHIFT_LEFT, to, bits)
}

const fn shift_right(to: u8, bits: i32) -> Instruction {
    by_constant(opcode::SHIFT_RIGHT, to, bits)
}

const fn exclusive_or(to: u8, from: u8) -> Instruction {
    by_register(opcode::EXCLUSIVE_OR, to, from)
}

const fn load_half(at: i32) -> Instruction {
    instruction(opcode::LOAD | opcode::ABSOLUTE | opcode::HALF, 0, 0, 0, at)
}

const fn load_word(at: i32) -> Instruction {
    instruction(opcode::LOAD | opcode::ABSOLUTE | opcode::WORD, 0, 0, 0, at)
}

const fn packet_byte(at: i32) -> Instruction {
    instruction(opcode::LOAD | opcode::INDIRECT | opcode::BYTE, 0, PACKET, 0, at)
}

const fn packet_half(at: i32) -> Instruction {
    instruction(opcode::LOAD | opcode::INDIRECT | opcode::HALF, 0, PACKET, 0, at)
}

const fn packet_word(at: i32) -> Instruction {
    instruction(opcode::LOAD | opcode::INDIRECT | opcode::WORD, 0, PACKET, 0, at)
}

const fn jump(over: usize) -> Instruction {
    instruction(opcode::JUMP | opcode::ALWAYS, 0, 0, over as i16, 0)
}

const fn jump_if_equal_constant(left: u8, constant: i32, over: usize) -> Instruction {
    instruction(opcode::JUMP | opcode::EQUAL, left, 0, over as i16, constant)
}

const fn jump_if_at_least(left: u8, right: u8, over: usize) -> Instruction {
    let opcode = opcode::JUMP | opcode::BY_REGISTER | opcode::AT_LEAST;
    instruction(opcode, left, right, over as i16, 0)
}

const fn exit() -> Instruction {
    instruction(opcode::JUMP | opcode::EXIT, 0, 0, 0, 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use etherparse::{IpFragOffset, PacketBuilder};

    use super::*;
    use crate::io::lan::tests::is_privileged;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const QUEUES: u16 = 4;

    /// The beginning of `union bpf_attr` for `BPF_PROG_TEST_RUN`, as of Linux 4.12.
    #[repr(C)]
    #[derive(Default)]
    struct RunRequest {
        program: u32,
        result: u32,
        input_length: u32,
        output_length: u32,
        input: u64,
        output: u64,
        repeat: u32,
        duration_ns: u32,
    }

    const BPF_PROG_TEST_RUN: libc::c_int = 10;

    /// What the kernel computes for a frame.
    fn run(program: &OwnedFd, frame: &[u8]) -> u16 {
        // For this type of program the kernel takes an Ethernet header off first
        // (bpf_prog_test_run_skb in net/bpf/test_run.c).
        let input = [&[0; 14], frame].concat();
        let mut request = RunRequest {
            program: program.as_raw_fd() as u32,
            input_length: input.len() as u32,
            input: input.as_ptr() as u64,
            repeat: 1,
            ..RunRequest::default()
        };
        let size = size_of::<RunRequest>();
        // SAFETY: the kernel reads the input and writes the request, which both live.
        let outcome =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut request, size) };
        assert_eq!(outcome, 0, "BPF_PROG_TEST_RUN: {}", last_errno());
        request.result as u16
    }

    /// The same in plain Rust; `None` where the frame ends too early.
    fn flow_hash(frame: &[u8]) -> Option<u16> {
        let number = |at: usize, length: usize| {
            let bytes = frame.get(at..at + length)?;
            Some(bytes.iter().fold(0_u32, |number, &byte| number << 8 | u32::from(byte)))
        };
        let mut hash = 0_u32;
        let mut take = |one: u32, other: u32| {
            for value in [one.min(other), one.max(other)] {
                hash = hash.wrapping_add(value).wrapping_mul(MULTIPLIER);
                hash ^= hash >> FOLD_SHIFT;
            }
        };
        let mut packet = 14;
        while packet < 22 && matches!(number(packet - 2, 2)?, 0x8100 | 0x88a8) {
            packet += 4;
        }
        let ports = match number(packet - 2, 2)? {
            0x0800 => {
                take(number(packet + 12, 4)?, number(packet + 16, 4)?);
                let is_whole = number(packet + 6, 2)? & 0x3fff == 0;
                let header_length = (number(packet, 1)? as usize & 0xf) * 4;
                let has_ports = is_whole && matches!(number(packet + 9, 1)?, 6 | 17);
                has_ports.then_some(packet + header_length)
            }
            0x86dd => {
                for at in (packet + 8..packet + 24).step_by(4) {
                    take(number(at, 4)?, number(at + 16, 4)?);
                }
                matches!(number(packet + 6, 1)?, 6 | 17).then_some(packet + 40)
            }
            _ => {
                take(number(0, 4)?, number(6, 4)?);
                take(number(4, 2)?, number(10, 2)?);
                None
            }
        };
        if let Some(ports) = ports {
            take(number(ports, 2)?, number(ports + 2, 2)?);
        }
        Some(hash as u16)
    }

    fn v4(from: u8, to: u8, ports: (u16, u16), tcp: bool) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(A, B).ipv4([10, 9, 0, from], [10, 9, 0, to], 64);
        written(builder, ports, tcp)
    }

    fn v6(from: u8, to: u8, ports: (u16, u16), tcp: bool) -> Vec<u8> {
        let address = |host| {
            let mut address = [0xfd; 16];
            address[15] = host;
            address
        };
        let builder = PacketBuilder::ethernet2(A, B).ipv6(address(from), address(to), 64);
        written(builder, ports, tcp)
    }

    fn written(
        builder: etherparse::PacketBuilderStep<etherparse::IpHeaders>,
        ports: (u16, u16),
        tcp: bool,
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        if tcp {
            builder.tcp(ports.0, ports.1, 1, 1024).write(&mut frame, b"payload")
        } else {
            builder.udp(ports.0, ports.1).write(&mut frame, b"payload")
        }
        .expect("a frame");
        frame
    }

    fn fragment(frame: &[u8], offset: u16, more: bool) -> Vec<u8> {
        let (ethernet, packet) = frame.split_at(14);
        let (mut header, rest) = etherparse::Ipv4Header::from_slice(packet).expect("IPv4");
        header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        header.more_fragments = more;
        [ethernet, &header.to_bytes(), rest].concat()
    }

    fn tagged(frame: &[u8], tpids: &[u16]) -> Vec<u8> {
        let tags = tpids.iter().flat_map(|tpid| [tpid.to_be_bytes(), [0x20, 100]].concat());
        [&frame[..12], &tags.collect::<Vec<_>>(), &frame[12..]].concat()
    }

    fn reversed(frame: &[u8]) -> Vec<u8> {
        [&frame[6..12], &frame[..6], &frame[12..]].concat()
    }

    /// The program's answer, held against the plain one.
    fn checked(program: &OwnedFd, frame: &[u8]) -> u16 {
        let hash = run(program, frame);
        assert_eq!(hash, flow_hash(frame).unwrap_or(0), "{frame:02x?}");
        hash
    }

    fn loaded() -> Option<OwnedFd> {
        if !is_privileged() {
            println!("skipped: bpf(2) needs root");
            return None;
        }
        Some(load(&super::program()).expect("the verifier takes the program"))
    }

    #[test]
    fn both_directions_of_a_flow_come_to_one_queue_whatever_their_tags() {
        let Some(program) = loaded() else { return };
        for tcp in [false, true] {
            for build in [v4, v6] {
                let there = build(1, 2, (50_000, 443), tcp);
                let back = reversed(&build(2, 1, (443, 50_000), tcp));
                let hash = checked(&program, &there);
                assert_ne!(hash, 0);
                assert_eq!(checked(&program, &back), hash);
                let stacks: [&[u16]; 4] =
                    [&[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100]];
                for stack in stacks {
                    assert_eq!(checked(&program, &tagged(&there, stack)), hash);
                }
                assert_ne!(checked(&program, &build(1, 2, (50_001, 443), tcp)), hash);
                assert_ne!(checked(&program, &build(1, 3, (50_000, 443), tcp)), hash);
                let three = tagged(&there, &[0x88a8, 0x8100, 0x8100]);
                assert_eq!(checked(&program, &three), checked(&program, &reversed(&three)));
            }
        }
    }

    #[test]
    fn all_fragments_of_two_hosts_come_to_one_queue() {
        let Some(program) = loaded() else { return };
        let (one, other) = (v4(1, 2, (50_000, 443), false), v4(2, 1, (80, 81), false));
        let fragments = [
            fragment(&one, 0, true),
            fragment(&one, 185, true),
            fragment(&one, 370, false),
            fragment(&other, 0, true),
            tagged(&fragment(&one, 185, true), &[0x8100]),
        ];
        let hashes: BTreeSet<_> = fragments.iter().map(|f| checked(&program, f)).collect();
        assert_eq!(hashes.len(), 1);
        assert_ne!(checked(&program, &one), checked(&program, &fragments[0]));
        // An IPv6 fragment header hides the ports.
        let whole = v6(1, 2, (50_000, 443), false);
        let mut hidden = whole.clone();
        hidden[14 + 6] = 44;
        let mut others = hidden.clone();
        others[14 + 40] ^= 0xff;
        assert_eq!(checked(&program, &hidden), checked(&program, &others));
        assert_ne!(checked(&program, &hidden), checked(&program, &whole));
    }

    #[test]
    fn options_are_skipped_and_other_protocols_go_by_addresses() {
        let Some(program) = loaded() else { return };
        let plain = v4(1, 2, (50_000, 443), true);
        let mut with_options = plain.clone();
        with_options[14] = 0x47;
        with_options.splice(34..34, [1; 8]);
        assert_eq!(checked(&program, &with_options), checked(&program, &plain));
        let mut echo = plain.clone();
        echo[14 + 9] = 1;
        let mut other_echo = echo.clone();
        other_echo[34] ^= 0xff;
        assert_eq!(checked(&program, &echo), checked(&program, &other_echo));
        let arp = [&B[..], &A, &[8, 6], &[7; 28]].concat();
        assert_eq!(checked(&program, &arp), checked(&program, &reversed(&arp)));
        assert_ne!(checked(&program, &arp), checked(&program, &[&[0xff; 6], &arp[6..]].concat()));
    }

    #[test]
    fn frames_cut_anywhere_are_no_trouble() {
        let Some(program) = loaded() else { return };
        for frame in [
            v4(1, 2, (50_000, 443), true),
            v6(1, 2, (50_000, 443), false),
            tagged(&v4(1, 2, (50_000, 443), false), &[0x88a8, 0x8100]),
        ] {
            for length in 14..frame.len() {
                checked(&program, &frame[..length]);
            }
        }
    }

    #[test]
    fn flows_spread_over_the_queues() {
        let Some(program) = loaded() else { return };
        // One client's connections, one server's clients, pairs of equal ports.
        let kinds: [&dyn Fn(u16) -> Vec<u8>; 4] = [
            &|n| v4(1, 2, (40_000 + n, 443), true),
            &|n| v6(n as u8, 250, (50_000, 443), false),
            &|n| v4(1, 2, (5000 + n, 5000 + n), false),
            &|n| [&[2, 0, 0, 0, 0, n as u8], &A[..], &[0x88, 0xb5], &[0; 46]].concat(),
        ];
        for (kind, build) in kinds.iter().enumerate() {
            let mut flows = [0; QUEUES as usize];
            for number in 0..200 {
                flows[usize::from(checked(&program, &build(number)) % QUEUES)] += 1;
            }
            // An even share is 50, with a standard deviation of 6.
            assert!(flows.iter().all(|count| (25..=75).contains(count)), "{kind}: {flows:?}");
        }
    }
}
