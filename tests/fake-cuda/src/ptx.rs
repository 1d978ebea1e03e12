//! Reads PTX: as much of it as kernels here use, and an error with the line for everything else.

use std::collections::BTreeMap;
use std::str::FromStr;

/// A kernel that can be run.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Bytes of its arguments.
    pub arguments: usize,
    pub registers: usize,
    pub instructions: Vec<Instruction>,
}

#[derive(Clone, Debug)]
pub struct Instruction {
    /// The register that must hold true.
    pub guard: Option<usize>,
    pub act: Act,
    /// Where the result goes.
    pub to: Option<usize>,
    pub from: Vec<Operand>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    Register(usize),
    Value(u64),
    Special(Special),
    /// A register's value with something added.
    Address(usize, u64),
    /// Place of an argument.
    Argument(usize),
    /// An instruction.
    Place(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Thread,
    Block,
    BlockSize,
    Blocks,
}

/// Bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Four,
    Eight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Equal,
    Less,
    Greater,
    GreaterOrEqual,
}

/// What an instruction does. Whole numbers are without sign, others of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Move,
    LoadArgument(Width),
    Load(Width),
    Store(Width),
    AddInMemory(Width),
    Truncate,
    MultiplyWide,
    Multiply(Width),
    MultiplyAdd(Width),
    Add(Width),
    Subtract(Width),
    Divide(Width),
    And,
    Or,
    Xor,
    ShiftLeft(Width),
    ShiftRight(Width),
    Compare(Compare, Width),
    FloatMultiplyAdd,
    FloatAdd,
    FloatSubtract,
    FloatMultiply,
    FloatDivide,
    FloatGreatest,
    PowerOfTwo,
    Jump,
    Return,
}

/// A line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRead {
    pub line: usize,
    pub why: String,
}

/// What is known of a kernel while it is read.
#[derive(Default)]
struct Reading {
    arguments: BTreeMap<String, usize>,
    bytes: usize,
    registers: BTreeMap<String, usize>,
    labels: BTreeMap<String, usize>,
    /// Instructions as they are written, with their lines: labels may come after.
    lines: Vec<(usize, String)>,
}

/// The kernels of a module.
pub fn parse(text: &str) -> Result<BTreeMap<String, Kernel>, NotRead> {
    let mut kernels = BTreeMap::new();
    let mut open: Option<(String, Reading)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let at = |why: String| NotRead { line: number, why };
        if !line.is_ascii() {
            return Err(at("a character that is not ASCII".into()));
        }
        let line = line.split("//").next().unwrap_or_default().trim();
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (&mut open, first) {
            (_, "" | "{" | ")" | ".version" | ".target" | ".address_size") => {}
            (None, ".visible") => {
                let name = rest.strip_prefix(".entry ").and_then(|rest| rest.strip_suffix('('));
                let name = name.ok_or_else(|| at(format!("{line}: not an entry")))?;
                open = Some((name.to_owned(), Reading::default()));
            }
            (Some((_, reading)), ".param") => reading.argument(rest).map_err(at)?,
            (Some((_, reading)), ".reg") => reading.register(rest).map_err(at)?,
            (Some(_), "}") => {
                let (name, reading) = open.take().expect("it is there");
                kernels.insert(name, reading.kernel()?);
            }
            (Some((_, reading)), _) => match line.strip_suffix(':') {
                Some(label) => drop(reading.labels.insert(label.to_owned(), reading.lines.len())),
                None => {
                    let line = line.strip_suffix(';').ok_or_else(|| at(format!("{line}: no semicolon")))?;
                    reading.lines.push((number, line.to_owned()));
                }
            },
            (None, _) => return Err(at(format!("{line}: outside a kernel"))),
        }
    }
    Ok(kernels)
}

impl Reading {
    /// `.u64 name,`
    fn argument(&mut self, text: &str) -> Result<(), String> {
        let (kind, name) = text.split_once(' ').ok_or("an argument has a type and a name")?;
        let bytes = width(kind)?.bytes();
        let place = self.bytes.next_multiple_of(bytes);
        self.arguments.insert(name.trim_end_matches(',').to_owned(), place);
        self.bytes = place + bytes;
        Ok(())
    }

    /// `.b32 %r<9>;`: nine registers.
    fn register(&mut self, text: &str) -> Result<(), String> {
        let (_, names) = text.split_once(' ').ok_or("registers have a type and a name")?;
        let parts = names.strip_suffix(">;").and_then(|names| names.split_once('<'));
        let (name, count) = parts.ok_or("registers are numbered")?;
        for number in 0..count.parse::<usize>().map_err(|error| error.to_string())? {
            let place = self.registers.len();
            self.registers.insert(format!("{name}{number}"), place);
        }
        Ok(())
    }

    fn kernel(self) -> Result<Kernel, NotRead> {
        let read = |(line, text): &(usize, String)| {
            self.instruction(text).map_err(|why| NotRead { line: *line, why: format!("{text}: {why}") })
        };
        let instructions = self.lines.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Kernel { arguments: self.bytes, registers: self.registers.len(), instructions })
    }

    fn instruction(&self, text: &str) -> Result<Instruction, String> {
        let (guard, text) = match text.strip_prefix('@').and_then(|text| text.split_once(' ')) {
            Some((register, text)) => (Some(self.named(register)?), text),
            None => (None, text),
        };
        let (code, operands) = text.split_once(' ').unwrap_or((text, ""));
        let act: Act = code.parse()?;
        let operands = operands.split(',').map(str::trim).filter(|operand| !operand.is_empty());
        let mut from = operands.map(|operand| self.operand(operand)).collect::<Result<Vec<_>, _>>()?;
        let to = match (act, from.first()) {
            (Act::Store(_) | Act::AddInMemory(_) | Act::Jump | Act::Return, _) => None,
            (_, Some(Operand::Register(register))) => Some(*register),
            _ => return Err("the result goes into a register".into()),
        };
        if to.is_some() {
            from.remove(0);
        }
        if from.len() != act.operands() {
            return Err(format!("it takes {} operands", act.operands()));
        }
        Ok(Instruction { guard, act, to, from })
    }

    fn named(&self, register: &str) -> Result<usize, String> {
        self.registers.get(register).copied().ok_or_else(|| format!("no register {register}"))
    }

    fn operand(&self, text: &str) -> Result<Operand, String> {
        let special = match text {
            "%tid.x" => Some(Special::Thread),
            "%ctaid.x" => Some(Special::Block),
            "%ntid.x" => Some(Special::BlockSize),
            "%nctaid.x" => Some(Special::Blocks),
            _ => None,
        };
        if let Some(special) = special {
            return Ok(Operand::Special(special));
        }
        if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            if let Some(place) = self.arguments.get(inside) {
                return Ok(Operand::Argument(*place));
            }
            let (register, added) = inside.split_once('+').unwrap_or((inside, "0"));
            return Ok(Operand::Address(self.named(register)?, number(added)?));
        }
        if text.starts_with('%') {
            return Ok(Operand::Register(self.named(text)?));
        }
        if let Some(place) = self.labels.get(text) {
            return Ok(Operand::Place(*place));
        }
        Ok(Operand::Value(number(text)?))
    }
}

/// `7`, `0x1F`, or `0f` and the bits of a float.
fn number(text: &str) -> Result<u64, String> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0f"));
    let number = match hexadecimal {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("{text} is no number and no label"))
}

fn width(kind: &str) -> Result<Width, String> {
    match kind {
        ".u32" | ".b32" | ".f32" => Ok(Width::Four),
        ".u64" | ".b64" => Ok(Width::Eight),
        _ => Err(format!("{kind}: not known here")),
    }
}

impl Width {
    pub fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

impl Act {
    /// How many it takes beside the place of its result.
    fn operands(self) -> usize {
        match self {
            Self::Return => 0,
            Self::Move
            | Self::LoadArgument(_)
            | Self::Load(_)
            | Self::Truncate
            | Self::PowerOfTwo
            | Self::Jump => 1,
            Self::MultiplyAdd(_) | Self::FloatMultiplyAdd => 3,
            _ => 2,
        }
    }
}

impl FromStr for Act {
    type Err = String;

    fn from_str(code: &str) -> Result<Self, String> {
        let unknown = || format!("{code}: not known here");
        let plain = match code {
            "ret" => Some(Self::Return),
            "bra" => Some(Self::Jump),
            "cvta.to.global.u64" | "cvt.u64.u32" => Some(Self::Move),
            "cvt.u32.u64" => Some(Self::Truncate),
            "mul.wide.u32" => Some(Self::MultiplyWide),
            "fma.rn.f32" => Some(Self::FloatMultiplyAdd),
            "add.f32" => Some(Self::FloatAdd),
            "sub.f32" => Some(Self::FloatSubtract),
            "mul.f32" => Some(Self::FloatMultiply),
            "div.rn.f32" => Some(Self::FloatDivide),
            "max.f32" => Some(Self::FloatGreatest),
            "ex2.approx.f32" => Some(Self::PowerOfTwo),
            "or.pred" => Some(Self::Or),
            _ => None,
        };
        if let Some(act) = plain {
            return Ok(act);
        }
        let (stem, kind) = code.rsplit_once('.').ok_or_else(unknown)?;
        let width = width(&format!(".{kind}"))?;
        Ok(match stem {
            "mov" => Self::Move,
            "ld.param" => Self::LoadArgument(width),
            "ld.global" => Self::Load(width),
            "st.global" => Self::Store(width),
            "red.global.add" => Self::AddInMemory(width),
            "mul.lo" => Self::Multiply(width),
            "mad.lo" => Self::MultiplyAdd(width),
            "add" => Self::Add(width),
            "sub" => Self::Subtract(width),
            "div" => Self::Divide(width),
            "and" => Self::And,
            "or" => Self::Or,
            "xor" => Self::Xor,
            "shl" => Self::ShiftLeft(width),
            "shr" => Self::ShiftRight(width),
            "setp.eq" => Self::Compare(Compare::Equal, width),
            "setp.lt" => Self::Compare(Compare::Less, width),
            "setp.gt" => Self::Compare(Compare::Greater, width),
            "setp.ge" => Self::Compare(Compare::GreaterOrEqual, width),
            _ => return Err(unknown()),
        })
    }
}
