//! Runs a kernel, thread after thread. Kernels whose threads wait for each other cannot be run so; none here does.

use crate::memory::{IllegalAddress, Memory};
use crate::ptx::{Act, Compare, Kernel, Operand, Special, Width};

/// How a kernel is started.
#[derive(Debug)]
pub struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub blocks: u32,
    pub block_size: u32,
    /// As many bytes as the kernel's arguments have.
    pub arguments: &'a [u8],
    /// How wrong powers of 2 are, as a share.
    pub skew: f32,
}

/// Runs every thread to its end.
pub fn run(launch: &Launch<'_>, memory: &mut Memory) -> Result<(), IllegalAddress> {
    let mut registers = vec![0; launch.kernel.registers];
    for block in 0..launch.blocks {
        for thread in 0..launch.block_size {
            let mut thread = Thread { launch, block, thread, registers: &mut registers, memory };
            thread.run()?;
        }
    }
    Ok(())
}

struct Thread<'a> {
    launch: &'a Launch<'a>,
    block: u32,
    thread: u32,
    registers: &'a mut [u64],
    memory: &'a mut Memory,
}

impl Thread<'_> {
    fn run(&mut self) -> Result<(), IllegalAddress> {
        let kernel = self.launch.kernel;
        let mut at = 0;
        while let Some(instruction) = kernel.instructions.get(at) {
            at += 1;
            if instruction.guard.is_some_and(|register| self.registers[register] == 0) {
                continue;
            }
            let from = instruction.from.as_slice();
            match (instruction.act, from) {
                (Act::Return, _) => return Ok(()),
                (Act::Jump, [Operand::Place(place)]) => at = *place,
                (Act::Store(width), [to, value]) => {
                    self.memory.set_number(self.value(to), width.bytes(), self.value(value))?;
                }
                (Act::AddInMemory(width), [to, value]) => {
                    let (address, bytes) = (self.value(to), width.bytes());
                    let sum = self.memory.number(address, bytes)?.wrapping_add(self.value(value));
                    self.memory.set_number(address, bytes, sum)?;
                }
                (act, from) => {
                    let result = self.result(act, from)?;
                    self.registers[instruction.to.expect("the reader saw to it")] = result;
                }
            }
        }
        Ok(())
    }

    /// What an instruction makes of its operands.
    fn result(&self, act: Act, from: &[Operand]) -> Result<u64, IllegalAddress> {
        let whole = |n: usize| self.value(&from[n]);
        let float = |n: usize| f32::from_bits(self.value(&from[n]) as u32);
        let result = match act {
            Act::Move => whole(0),
            Act::LoadArgument(width) => {
                let (place, bytes) = (whole(0) as usize, width.bytes());
                let mut number = [0; 8];
                number[..bytes].copy_from_slice(&self.launch.arguments[place..place + bytes]);
                u64::from_le_bytes(number)
            }
            Act::Load(width) => self.memory.number(whole(0), width.bytes())?,
            Act::Truncate => cut(whole(0), Width::Four),
            Act::MultiplyWide => cut(whole(0), Width::Four) * cut(whole(1), Width::Four),
            Act::Multiply(width) => cut(whole(0).wrapping_mul(whole(1)), width),
            Act::MultiplyAdd(width) => cut(whole(0).wrapping_mul(whole(1)).wrapping_add(whole(2)), width),
            Act::Add(width) => cut(whole(0).wrapping_add(whole(1)), width),
            Act::Subtract(width) => cut(whole(0).wrapping_sub(whole(1)), width),
            // A GPU makes all ones of a division by zero.
            Act::Divide(width) => cut(whole(0).checked_div(whole(1)).unwrap_or(u64::MAX), width),
            Act::And => whole(0) & whole(1),
            Act::Or => whole(0) | whole(1),
            Act::Xor => whole(0) ^ whole(1),
            Act::ShiftLeft(width) => cut(whole(0) << whole(1), width),
            Act::ShiftRight(width) => cut(whole(0), width) >> whole(1),
            Act::Compare(compare, width) => {
                let (one, other) = (cut(whole(0), width), cut(whole(1), width));
                u64::from(match compare {
                    Compare::Equal => one == other,
                    Compare::Less => one < other,
                    Compare::Greater => one > other,
                    Compare::GreaterOrEqual => one >= other,
                })
            }
            Act::FloatMultiplyAdd => bits(float(0).mul_add(float(1), float(2))),
            Act::FloatAdd => bits(float(0) + float(1)),
            Act::FloatSubtract => bits(float(0) - float(1)),
            Act::FloatMultiply => bits(float(0) * float(1)),
            Act::FloatDivide => bits(float(0) / float(1)),
            Act::FloatGreatest => bits(float(0).max(float(1))),
            // Skewed more the smaller the power, or it would cancel out where all are divided by their sum.
            Act::PowerOfTwo => bits(float(0).exp2() * (1.0 - self.launch.skew * float(0).min(1.0))),
            Act::Store(_) | Act::AddInMemory(_) | Act::Jump | Act::Return => {
                unreachable!("they make nothing")
            }
        };
        Ok(result)
    }

    fn value(&self, operand: &Operand) -> u64 {
        match operand {
            Operand::Register(register) => self.registers[*register],
            Operand::Value(value) => *value,
            Operand::Address(register, added) => self.registers[*register].wrapping_add(*added),
            Operand::Argument(place) | Operand::Place(place) => *place as u64,
            Operand::Special(special) => u64::from(match special {
                Special::Thread => self.thread,
                Special::Block => self.block,
                Special::BlockSize => self.launch.block_size,
                Special::Blocks => self.launch.blocks,
            }),
        }
    }
}

fn cut(number: u64, width: Width) -> u64 {
    match width {
        Width::Four => number & 0xFFFF_FFFF,
        Width::Eight => number,
    }
}

fn bits(number: f32) -> u64 {
    number.to_bits().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::parse;

    /// Each thread below `count` adds its number to the sum at `at`.
    const SUM: &str = "\
.visible .entry sum(
    .param .u64 at,
    .param .u32 count
)
{
    .reg .pred %p<1>;
    .reg .b32 %r<5>;
    .reg .b64 %d<2>;
    mov.u32 %r0, %ctaid.x;
    mov.u32 %r1, %ntid.x;
    mov.u32 %r2, %tid.x;
    mad.lo.u32 %r3, %r0, %r1, %r2;
    ld.param.u32 %r4, [count];
    setp.ge.u32 %p0, %r3, %r4;
    @%p0 bra DONE;
    ld.param.u64 %d0, [at];
    cvt.u64.u32 %d1, %r3;
    red.global.add.u64 [%d0+8], %d1;
DONE:
    ret;
}
";

    fn sum(at: u64, count: u32, memory: &mut Memory) -> Result<(), IllegalAddress> {
        let kernel = &parse(SUM).unwrap()["sum"];
        let arguments = [at.to_le_bytes().as_slice(), &count.to_le_bytes()].concat();
        assert_eq!(kernel.arguments, arguments.len());
        run(&Launch { kernel, blocks: 3, block_size: 4, arguments: &arguments, skew: 0.0 }, memory)
    }

    #[test]
    fn every_thread_runs_and_the_last_ones_have_nothing_to_do() {
        let mut memory = Memory::new(1024);
        let at = memory.allocate(16).unwrap();
        memory.set_number(at + 8, 8, 0).unwrap();
        sum(at, 10, &mut memory).unwrap();
        assert_eq!(memory.number(at + 8, 8), Ok(45));
    }

    #[test]
    fn what_is_beyond_an_allocation_is_not_reached() {
        let mut memory = Memory::new(1024);
        let at = memory.allocate(12).unwrap();
        assert_eq!(sum(at, 1, &mut memory), Err(IllegalAddress(at + 8)));
        assert_eq!(sum(at - 8, 1, &mut memory), Ok(()));
        memory.release(at).unwrap();
        assert_eq!(sum(at - 8, 1, &mut memory), Err(IllegalAddress(at)));
        assert_eq!(memory.free(), 1024);
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_line() {
        for (from, to, line, said) in [
            ("red.global.add.u64", "red.global.max.u64", 18, "red.global.max.u64: not known here"),
            ("%r<5>", "%r<4>", 13, "no register %r4"),
            ("bra DONE", "bra GONE", 15, "GONE is no number and no label"),
            ("%d1, %r3;", "%d1, %r3", 17, "no semicolon"),
            ("{", "{ // \u{d7}", 5, "not ASCII"),
        ] {
            let text = SUM.replacen(from, to, 1);
            let error = parse(&text).expect_err(to);
            assert!(error.line == line && error.why.contains(said), "{error:?}");
        }
    }
}
