//! The part of MATLAB's level 5 MAT format that the development kits of ILSVRC use: one array of structures with
//! numbers and texts, compressed or not. Format: "MAT-File Format" (MathWorks), chapter 1.
//!
//! Everything is read from bytes that are there; nothing is sized by a number in the file.

use flate2::read::ZlibDecoder;
use std::io::Read;

/// Most bytes that a compressed variable may unpack to: ILSVRC's are 2-3 MiB.
const MAX_VARIABLE_BYTES: u64 = 16 << 20;

/// Most fields of a structure, and most structures; ILSVRC's have 8 and 1,860.
const MAX_FIELDS: usize = 64;
const MAX_ROWS: u64 = 100_000;

const MI_COMPRESSED: u32 = 15;
const MI_MATRIX: u32 = 14;
const MX_STRUCT: u8 = 2;
const MX_CHAR: u8 = 4;

/// A value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// The first number of an array.
    Number(f64),
    /// Text.
    Text(String),
    /// An empty array, or one of another kind.
    Other,
}

/// Reads the fields `wanted` of the variable `name`, an array of structures: one row of values for each structure.
///
/// # Errors
/// What is wrong with the file.
pub fn read_structs(bytes: &[u8], name: &str, wanted: &[&str]) -> Result<Vec<Vec<Value>>, String> {
    let header = bytes.get(..128).ok_or("not a MATLAB 5 file: shorter than its header")?;
    let order = match &header[126..128] {
        b"IM" => Order::Little,
        b"MI" => Order::Big,
        _ if bytes.starts_with(b"\x89HDF") || header.starts_with(b"MATLAB 7.3") => {
            return Err("a MATLAB 7.3 (HDF5) file; level 5 is read".into());
        }
        _ => return Err("not a MATLAB 5 file: no byte order in its header".into()),
    };
    let mut rest = &bytes[128..];
    while !rest.is_empty() {
        let element = order.element(&mut rest)?;
        let unpacked;
        let body = if element.kind == MI_COMPRESSED {
            unpacked = unpack(element.data)?;
            let mut inner = &unpacked[..];
            let inner = order.element(&mut inner)?;
            if inner.kind != MI_MATRIX {
                continue;
            }
            inner.data
        } else if element.kind == MI_MATRIX {
            element.data
        } else {
            continue;
        };
        let mut body = body;
        let array = order.array(&mut body)?;
        if array.name == name.as_bytes() {
            return order.structs(&array, body, wanted);
        }
    }
    Err(format!("no variable `{name}` in it"))
}

fn unpack(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    ZlibDecoder::new(data)
        .take(MAX_VARIABLE_BYTES + 1)
        .read_to_end(&mut unpacked)
        .map_err(|e| format!("a compressed variable is damaged ({e})"))?;
    if unpacked.len() as u64 > MAX_VARIABLE_BYTES {
        return Err(format!("a variable of more than {MAX_VARIABLE_BYTES} bytes"));
    }
    Ok(unpacked)
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

struct Element<'a> {
    kind: u32,
    data: &'a [u8],
}

/// The beginning of an array.
struct Array {
    class: u8,
    /// Product of its dimensions.
    count: u64,
    name: Vec<u8>,
}

impl Order {
    fn u32(self, bytes: &[u8]) -> Result<u32, String> {
        let bytes: [u8; 4] = bytes.get(..4).and_then(|b| b.try_into().ok()).ok_or("it ends too early")?;
        Ok(match self {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        })
    }

    /// Takes one element, its padding included.
    fn element<'a>(self, rest: &mut &'a [u8]) -> Result<Element<'a>, String> {
        let first = self.u32(rest)?;
        // Up to four bytes may stand in the tag itself, their number in its upper half.
        if first >> 16 != 0 {
            let (kind, length) = (first & 0xFFFF, (first >> 16) as usize);
            let data = rest.get(4..4 + length).filter(|_| length <= 4).ok_or("a damaged small element")?;
            *rest = rest.get(8..).unwrap_or(&[]);
            return Ok(Element { kind, data });
        }
        let length = self.u32(rest.get(4..).unwrap_or(&[]))? as usize;
        let end = length.checked_add(8).ok_or("an element of 4 GiB")?;
        let data = rest.get(8..end).ok_or_else(|| {
            format!("an element of {length} bytes where {} are left", rest.len().saturating_sub(8))
        })?;
        let padded = if first == MI_COMPRESSED { end } else { end.next_multiple_of(8) };
        *rest = rest.get(padded..).unwrap_or(&[]);
        Ok(Element { kind: first, data })
    }

    /// Flags, dimensions and name of an array; what follows depends on its class.
    fn array(self, body: &mut &[u8]) -> Result<Array, String> {
        let flags = self.element(body)?;
        let class = (self.u32(flags.data)? & 0xFF) as u8;
        let dimensions = self.element(body)?;
        let mut count = 1u64;
        for d in dimensions.data.chunks_exact(4) {
            count = count.saturating_mul(u64::from(self.u32(d)?));
        }
        let name = self.element(body)?.data.to_vec();
        Ok(Array { class, count, name })
    }

    fn structs(self, array: &Array, mut body: &[u8], wanted: &[&str]) -> Result<Vec<Vec<Value>>, String> {
        if array.class != MX_STRUCT {
            return Err("the variable is not an array of structures".into());
        }
        let length = self.u32(self.element(&mut body)?.data)? as usize;
        let names = self.element(&mut body)?.data;
        if length == 0 || names.is_empty() || names.len().div_ceil(length) > MAX_FIELDS {
            return Err(format!("an array of structures without fields, or with more than {MAX_FIELDS}"));
        }
        if array.count > MAX_ROWS {
            return Err(format!("{} structures; at most {MAX_ROWS} are read", array.count));
        }
        let text = |name: &[u8]| {
            String::from_utf8_lossy(name.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
        };
        let fields: Vec<String> = names.chunks(length).map(text).collect();
        let places: Vec<usize> = wanted
            .iter()
            .map(|w| fields.iter().position(|f| f == w).ok_or(format!("no field `{w}` in it")))
            .collect::<Result<_, _>>()?;
        let mut rows = Vec::new();
        for _ in 0..array.count {
            let mut row = vec![Value::Other; wanted.len()];
            for field in 0..fields.len() {
                let element = self.element(&mut body)?;
                for (value, _) in row.iter_mut().zip(&places).filter(|(_, place)| **place == field) {
                    *value = self.value(&element)?;
                }
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn value(self, element: &Element) -> Result<Value, String> {
        if element.kind != MI_MATRIX || element.data.is_empty() {
            return Ok(Value::Other);
        }
        let mut body = element.data;
        let array = self.array(&mut body)?;
        if array.count == 0 {
            return Ok(Value::Other);
        }
        if array.class == MX_CHAR {
            return Ok(Value::Text(self.text(&self.element(&mut body)?)?));
        }
        // Numbers of any class: 6 double ... 15 uint64.
        if !(6..=15).contains(&array.class) {
            return Ok(Value::Other);
        }
        self.number(&self.element(&mut body)?).map(Value::Number)
    }

    /// Characters are stored as bytes, UTF-8 or 16-bit units.
    fn text(self, element: &Element) -> Result<String, String> {
        match element.kind {
            1 | 2 | 16 => Ok(String::from_utf8_lossy(element.data).into_owned()),
            3 | 4 | 17 => {
                let units = element.data.chunks_exact(2).map(|b| match self {
                    Order::Little => u16::from_le_bytes([b[0], b[1]]),
                    Order::Big => u16::from_be_bytes([b[0], b[1]]),
                });
                Ok(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
            }
            kind => Err(format!("text of an unknown type {kind}")),
        }
    }

    /// The first number; MATLAB stores small ones in small types whatever their class.
    fn number(self, element: &Element) -> Result<f64, String> {
        let size = match element.kind {
            1 | 2 => 1,
            3 | 4 => 2,
            5 | 6 | 7 => 4,
            9 | 12 | 13 => 8,
            kind => return Err(format!("numbers of an unknown type {kind}")),
        };
        let mut raw = [0; 8];
        raw[..size].copy_from_slice(element.data.get(..size).ok_or("an array without its numbers")?);
        if let Order::Big = self {
            raw[..size].reverse();
        }
        let wide = u64::from_le_bytes(raw);
        Ok(match element.kind {
            1 => f64::from(raw[0] as i8),
            3 => f64::from(wide as u16 as i16),
            5 => f64::from(wide as u32 as i32),
            7 => f64::from(f32::from_bits(wide as u32)),
            9 => f64::from_bits(wide),
            12 => wide as i64 as f64,
            _ => wide as f64,
        })
    }
}
