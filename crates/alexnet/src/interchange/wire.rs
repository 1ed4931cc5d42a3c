//! The wire format of protocol buffers, read in place and written: what Caffe's and ONNX's files are made of.
//!
//! A reader of our own rather than generated messages: the tensors (a quarter of a gigabyte) stay where they are in the
//! mapped file, and a hostile file can neither nest without end (a message is entered only where its reader asks for
//! it) nor make many times its own size of empty messages.

use std::borrow::Cow;

/// A field's value. A message, text or packed list is [`Value::Bytes`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An integer or truth value.
    Varint(u64),
    /// Eight bytes.
    Fixed64([u8; 8]),
    /// Text, bytes, a message or a packed list.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32([u8; 4]),
}

impl<'a> Value<'a> {
    /// The bytes of a field that has some; else why it has none.
    pub fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err("a message or text is stored as a number".into()),
        }
    }

    /// Text of at most the length of a name. Bytes that are not UTF-8 are replaced.
    pub fn text(self) -> Result<String, String> {
        let bytes = self.bytes()?;
        if bytes.len() > super::foreign::MAX_NAME_BYTES {
            return Err(format!("a name of {} bytes", bytes.len()));
        }
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// An integer that is stored as one.
    pub fn integer(self) -> Result<i64, String> {
        match self {
            Value::Varint(n) => Ok(n as i64),
            _ => Err("a number is stored as bytes".into()),
        }
    }

    /// A size: an integer that is not negative and below 2^31.
    pub fn size(self) -> Result<usize, String> {
        let n = self.integer()?;
        usize::try_from(n).ok().filter(|&n| n < 1 << 31).ok_or_else(|| format!("{n} is no size"))
    }

    /// A single-precision number.
    pub fn float(self) -> Result<f32, String> {
        match self {
            Value::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err("a fraction is stored as something else".into()),
        }
    }

    /// Adds the integers of a repeated field, packed or not, to `list`, which may not grow beyond `most`.
    pub fn integers(self, list: &mut Vec<i64>, most: usize) -> Result<(), String> {
        match self {
            Value::Varint(n) => list.push(n as i64),
            Value::Bytes(mut bytes) => {
                while !bytes.is_empty() && list.len() <= most {
                    list.push(varint(&mut bytes)? as i64);
                }
            }
            _ => return Err("a list of integers is stored as fractions".into()),
        }
        if list.len() > most { Err(format!("a list of more than {most} numbers")) } else { Ok(()) }
    }

    /// Adds the elements of a repeated `float` or `double` field, packed or not, to `all`: a packed field that is
    /// alone stays where it is.
    pub fn elements(self, all: &mut Cow<'a, [u8]>) -> Result<(), String> {
        match self {
            Value::Bytes(bytes) if all.is_empty() => *all = Cow::Borrowed(bytes),
            Value::Bytes(bytes) => all.to_mut().extend_from_slice(bytes),
            Value::Fixed32(bytes) => all.to_mut().extend_from_slice(&bytes),
            Value::Fixed64(bytes) => all.to_mut().extend_from_slice(&bytes),
            Value::Varint(_) => return Err("a list of fractions is stored as integers".into()),
        }
        Ok(())
    }
}

/// The fields of a message, in the file's order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    left: &'a [u8],
    failed: bool,
}

impl<'a> Fields<'a> {
    /// The fields of the message that these bytes are.
    pub fn of(bytes: &'a [u8]) -> Self {
        Fields { left: bytes, failed: false }
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let tag = varint(&mut self.left)?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(format!("a field with the number {number}"));
        }
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut self.left)?),
            1 => Value::Fixed64(take(&mut self.left, 8)?.try_into().map_err(|_| "a number is cut")?),
            2 => {
                let length = varint(&mut self.left)?;
                let length = usize::try_from(length).map_err(|_| format!("a length of {length}"))?;
                Value::Bytes(take(&mut self.left, length)?)
            }
            5 => Value::Fixed32(take(&mut self.left, 4)?.try_into().map_err(|_| "a number is cut")?),
            other => return Err(format!("field {number} has the wire type {other}")),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() || self.failed {
            return None;
        }
        let field = self.field();
        self.failed = field.is_err();
        Some(field)
    }
}

fn take<'a>(left: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    if length > left.len() {
        return Err(format!("a field of {length} bytes where {} are left: cut or damaged", left.len()));
    }
    let (taken, rest) = left.split_at(length);
    *left = rest;
    Ok(taken)
}

fn varint(left: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0u64;
    for i in 0..10 {
        let byte = take(left, 1)?[0];
        number |= u64::from(byte & 0x7f).checked_shl(7 * i).unwrap_or(0);
        if byte < 0x80 {
            return if i == 9 && byte > 1 { Err("a number of more than 64 bits".into()) } else { Ok(number) };
        }
    }
    Err("a number of more than ten bytes".into())
}

/// A message being written.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// The bytes so far.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// The tag and length of a field of `length` bytes that are written elsewhere.
    pub fn head(mut self, field: u64, length: u64) -> Self {
        self.varint(field << 3 | 2);
        self.varint(length);
        self
    }

    /// An integer.
    pub fn int(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    /// A single-precision number.
    pub fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Text or bytes.
    pub fn text(self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let mut message = self.head(field, value.len() as u64);
        message.0.extend(value);
        message
    }

    /// A message.
    pub fn message(self, field: u64, value: Message) -> Self {
        self.text(field, value.0)
    }

    /// Integers, one field each.
    pub fn ints(self, field: u64, values: impl IntoIterator<Item = usize>) -> Self {
        values.into_iter().fold(self, |message, value| message.int(field, value as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Message::default().int(1, 300).float(2, -1.5);
        let bytes =
            Message::default().text(4, "name").message(100, inner.clone()).int(3, u64::MAX).into_bytes();
        let fields: Vec<_> = Fields::of(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(fields[0].1.text().unwrap(), "name");
        assert_eq!(fields[1], (100, Value::Bytes(&inner.into_bytes())));
        assert_eq!(fields[2].1.integer().unwrap(), -1);
        let mut list = vec![];
        Value::Bytes(&[1, 0xac, 2]).integers(&mut list, 8).unwrap();
        assert_eq!(list, [1, 300]);
        assert!(Value::Bytes(&[1; 9]).integers(&mut vec![], 8).is_err());
    }

    #[test]
    fn lies_are_refused() {
        for bad in [
            &[0x0a][..],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
            &[0x0b],
            &[0x00, 0x00],
            &[0x0d, 1, 2, 3],
        ] {
            let fields: Vec<_> = Fields::of(bad).collect();
            assert!(fields.len() == 1 && fields[0].is_err(), "{bad:?}");
        }
    }
}
