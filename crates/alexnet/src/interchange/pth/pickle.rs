//! A reader of pickles that builds data and can do nothing else.
//!
//! A pickle is a program for a stack machine, and Python's machine calls whatever function the program names. This one
//! knows the operations that data needs, and the dozen names of [`ALLOWED`]; of these, only the ones that describe a
//! tensor or make an empty dictionary can be "called", and that is done here, by looking at the arguments. Any other
//! name, and any other operation, ends the reading with an error that says what was refused. Everything is bounded:
//! an operation makes at most one object, an object is a few words, and there are limits on all counts.

use super::super::foreign::short;
use std::collections::HashMap;

/// The names that a pickle may use.
pub const ALLOWED: [&str; 14] = [
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.DoubleStorage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
];

/// Objects of a pickle. A training checkpoint of AlexNet has a few thousand.
const MAX_OBJECTS: usize = 200_000;
/// Elements of lists, tuples and dictionaries, all together.
const MAX_ELEMENTS: usize = 1_000_000;
/// The longest text, bytes.
const MAX_TEXT_BYTES: usize = 1 << 16;

/// A value; what does not fit in a word is an object of [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer; beyond 64 bits, its low ones.
    Int(i64),
    /// A fraction.
    Float(f64),
    /// The object of this number.
    Object(usize),
}

/// An object, which values refer to by its number.
#[derive(Clone, Debug, PartialEq)]
pub enum Object<'a> {
    /// Text.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A name of [`ALLOWED`].
    Global(&'static str),
    /// A tuple or list.
    List(Vec<Value>),
    /// A dictionary.
    Dict(Vec<(Value, Value)>),
    /// A piece of memory that is stored outside the pickle: the arguments of the reference.
    Persistent(Value),
    /// A tensor: the arguments of `_rebuild_tensor_v2`.
    Tensor(Vec<Value>),
}

/// A pickle that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Pickle<'a> {
    /// The result.
    pub root: Value,
    /// All objects.
    pub objects: Vec<Object<'a>>,
    /// Where it ends in the bytes that were given.
    pub end: usize,
}

impl<'a> Pickle<'a> {
    /// The object that a value refers to.
    pub fn object(&self, value: Value) -> Option<&Object<'a>> {
        match value {
            Value::Object(at) => self.objects.get(at),
            _ => None,
        }
    }

    /// The text that a value is.
    pub fn text(&self, value: Value) -> Option<&'a str> {
        match self.object(value) {
            Some(Object::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The elements of the tuple or list that a value is.
    pub fn list(&self, value: Value) -> Option<&[Value]> {
        match self.object(value) {
            Some(Object::List(list)) => Some(list),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Lengths of the stack at which marks were set.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    objects: Vec<Object<'a>>,
    elements: usize,
}

/// Reads the pickle at the beginning of `bytes`.
pub fn load(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        objects: vec![],
        elements: 0,
    };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Pickle { root, objects: machine.objects, end: machine.at }),
            Err(why) if why.starts_with("refused:") => return Err(why),
            Err(why) => return Err(format!("its pickle is damaged at byte {at}: {why}")),
        }
    }
}

impl<'a> Machine<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let taken = &self.bytes[self.at..end.ok_or("it is cut")?];
        self.at += length;
        Ok(taken)
    }

    /// An unsigned little-endian number of so many bytes.
    fn number(&mut self, bytes: usize) -> Result<usize, String> {
        let number = self.take(bytes)?.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        usize::try_from(number).map_err(|_| format!("a size of {number}"))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let window = &rest[..rest.len().min(512)];
        let end = window.iter().position(|&b| b == b'\n').ok_or("a line without end")?;
        self.at += end + 1;
        std::str::from_utf8(&window[..end]).map_err(|_| "a line that is no text".into())
    }

    fn pop(&mut self) -> Result<Value, String> {
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err("a value is missing behind a mark".into());
        }
        self.stack.pop().ok_or_else(|| "its stack is empty".into())
    }

    /// The values above the last mark, which goes.
    fn marked(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        self.count_elements(self.stack.len() - mark)?;
        Ok(self.stack.split_off(mark))
    }

    fn count_elements(&mut self, more: usize) -> Result<(), String> {
        self.elements += more;
        if self.elements > MAX_ELEMENTS { Err(format!("more than {MAX_ELEMENTS} elements")) } else { Ok(()) }
    }

    fn push(&mut self, object: Object<'a>) -> Result<(), String> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} objects"));
        }
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
        Ok(())
    }

    fn push_tuple(&mut self, length: usize) -> Result<(), String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(length).filter(|&from| from >= floor);
        let values = self.stack.split_off(from.ok_or("its stack is too short")?);
        self.count_elements(length)?;
        self.push(Object::List(values))
    }

    fn push_text(&mut self, length: usize) -> Result<(), String> {
        if length > MAX_TEXT_BYTES {
            return Err(format!("a text of {length} bytes"));
        }
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a text that is not UTF-8")?;
        self.push(Object::Text(text))
    }

    fn push_bytes(&mut self, length: usize) -> Result<(), String> {
        if length > MAX_TEXT_BYTES {
            return Err(format!("a text of {length} bytes"));
        }
        let bytes = self.take(length)?;
        // Python 2 wrote its texts so.
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Object::Text(text)),
            Err(_) => self.push(Object::Bytes(bytes)),
        }
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), String> {
        match ALLOWED.into_iter().find(|allowed| {
            allowed.strip_prefix(module).and_then(|rest| rest.strip_prefix('.')) == Some(name)
        }) {
            Some(allowed) => self.push(Object::Global(allowed)),
            None => Err(refusal("GLOBAL", module, name)),
        }
    }

    /// An integer of any length, little-endian, two's complement.
    fn push_long(&mut self, length: usize) -> Result<(), String> {
        if length > 256 {
            return Err(format!("an integer of {length} bytes"));
        }
        let bytes = self.take(length)?;
        let sign = if bytes.last().is_some_and(|&b| b >= 0x80) { 0xff } else { 0 };
        let low = std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(sign));
        self.stack.push(Value::Int(i64::from_le_bytes(low)));
        Ok(())
    }

    /// The dictionary or list below the values that are put in it.
    fn top(&mut self) -> Result<&mut Object<'a>, String> {
        match self.stack.last() {
            Some(&Value::Object(at)) => Ok(&mut self.objects[at]),
            _ => Err("values are put into something that is no container".into()),
        }
    }

    fn append(&mut self, values: Vec<Value>) -> Result<(), String> {
        match self.top()? {
            Object::List(list) => list.extend(values),
            _ => return Err("values are appended to something that is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, values: &[Value]) -> Result<(), String> {
        let (pairs, odd) = values.as_chunks::<2>();
        if !odd.is_empty() {
            return Err("a key without a value".into());
        }
        match self.top()? {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err("values are set in something that is no dictionary".into()),
        }
        Ok(())
    }

    /// Makes what a call of an allowed name would make, without calling anything.
    fn reduce(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let object = |value| match value {
            Value::Object(at) => self.objects.get(at),
            _ => None,
        };
        let (Some(Object::Global(function)), Some(Object::List(arguments))) =
            (object(function), object(arguments))
        else {
            return Err("something is called that is no function, or without arguments".into());
        };
        let object = match (*function, &arguments[..]) {
            ("collections.OrderedDict", []) => Object::Dict(vec![]),
            ("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor", arguments)
                if (4..=7).contains(&arguments.len()) =>
            {
                Object::Tensor(arguments.to_vec())
            }
            // The parameter's tensor is all that is wanted of it.
            ("torch._utils._rebuild_parameter", &[tensor, ..]) => {
                self.stack.push(tensor);
                return Ok(());
            }
            (name, arguments) => return Err(format!("{name} with {} arguments", arguments.len())),
        };
        self.push(object)
    }

    /// One operation; the result if it is the last.
    fn step(&mut self) -> Result<Option<Value>, String> {
        match self.take(1)?[0] {
            0x80 => match self.number(1)? {
                2..=5 => {}
                version => return Err(format!("pickle protocol {version}")),
            },
            0x95 => drop(self.number(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.push(Object::Dict(vec![]))?,
            b']' | b')' => self.push(Object::List(vec![]))?,
            b't' | b'l' => {
                let values = self.marked()?;
                self.push(Object::List(values))?;
            }
            b'd' => {
                let values = self.marked()?;
                self.push(Object::Dict(vec![]))?;
                self.set(&values)?;
            }
            0x85 => self.push_tuple(1)?,
            0x86 => self.push_tuple(2)?,
            0x87 => self.push_tuple(3)?,
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let n = self.number(4)? as u32;
                self.stack.push(Value::Int(i64::from(n as i32)));
            }
            b'K' => {
                let n = self.number(1)?;
                self.stack.push(Value::Int(n as i64));
            }
            b'M' => {
                let n = self.number(2)?;
                self.stack.push(Value::Int(n as i64));
            }
            0x8a => {
                let length = self.number(1)?;
                self.push_long(length)?;
            }
            b'G' => {
                let bytes = self.take(8)?.first_chunk::<8>().ok_or("it is cut")?;
                self.stack.push(Value::Float(f64::from_be_bytes(*bytes)));
            }
            b'X' => {
                let length = self.number(4)?;
                self.push_text(length)?;
            }
            0x8c => {
                let length = self.number(1)?;
                self.push_text(length)?;
            }
            b'U' | b'C' => {
                let length = self.number(1)?;
                self.push_bytes(length)?;
            }
            b'T' | b'B' => {
                let length = self.number(4)?;
                self.push_bytes(length)?;
            }
            b'q' => {
                let key = self.number(1)?;
                self.remember(key as u32)?;
            }
            b'r' => {
                let key = self.number(4)?;
                self.remember(key as u32)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let key = self.number(1)?;
                self.recall(key as u32)?;
            }
            b'j' => {
                let key = self.number(4)?;
                self.recall(key as u32)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |value| match value {
                    Value::Object(at) => match self.objects[at] {
                        Object::Text(text) => Ok(text),
                        _ => Err("a name that is no text"),
                    },
                    _ => Err("a name that is no text"),
                };
                let (module, name) = (text(module)?, text(name)?);
                self.push_global(module, name)?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(refusal("INST", module, name));
            }
            b'R' => self.reduce()?,
            b'b' => {
                // The attributes of an ordered dictionary (PyTorch's `_metadata`) are not wanted.
                self.pop()?;
                if !matches!(self.top()?, Object::Dict(_)) {
                    return Err("attributes are set on something that is no dictionary".into());
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Object::Persistent(id))?;
            }
            b'a' => {
                let value = self.pop()?;
                self.count_elements(1)?;
                self.append(vec![value])?;
            }
            b'e' => {
                let values = self.marked()?;
                self.append(values)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.count_elements(2)?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let values = self.marked()?;
                self.set(&values)?;
            }
            code @ (b'o' | 0x81 | 0x92 | 0x82..=0x84 | b'P') => {
                return Err(format!(
                    "refused: opcode {code:#04x} makes objects of any kind, which no weights need"
                ));
            }
            code @ (b'I' | b'L' | b'F' | b'S' | b'V' | b'g' | b'p') => {
                return Err(format!(
                    "refused: opcode {code:#04x} of pickle protocol 0, which torch.save never writes"
                ));
            }
            code => return Err(format!("refused: opcode {code:#04x}, which weights have no use for")),
        }
        if self.stack.len() > MAX_ELEMENTS || self.marks.len() > MAX_OBJECTS {
            return Err("more values than any weights have".into());
        }
        Ok(None)
    }

    fn remember(&mut self, key: u32) -> Result<(), String> {
        let &value = self.stack.last().ok_or("nothing to remember")?;
        if self.memo.len() >= MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} remembered values"));
        }
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let value = *self.memo.get(&key).ok_or("a value that was never remembered")?;
        self.stack.push(value);
        Ok(())
    }
}

fn refusal(kind: &str, module: &str, name: &str) -> String {
    format!(
        "refused: {kind} {}.{}: Python would run code of this name when it opens the file; weights need no such \
         thing, and nothing was run (save the state_dict() alone)",
        short(module),
        short(name)
    )
}
