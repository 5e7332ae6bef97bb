//! LEB128 integers, the building block of fraudline's binary encodings.

/// Why bytes are no valid encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the encoding ends in the middle of a value")]
    Truncated,
    #[error("an integer is longer than 64 bits")]
    Overlong,
    #[error("{0} bytes follow the end of the encoding")]
    TrailingBytes(usize),
    #[error("format version {found} is not known here, the newest known is {known}")]
    UnknownVersion { found: u8, known: u8 },
    #[error("{0} is not valid here")]
    Invalid(&'static str),
}

/// Appends `value` as unsigned LEB128.
#[inline]
pub fn write_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` zigzag-encoded, so that small negative numbers stay small.
#[inline]
pub fn write_signed(out: &mut Vec<u8>, value: i64) {
    write_unsigned(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends `bytes` behind their number, as [`Reader::text`] reads them.
#[inline]
pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_unsigned(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends the eight bytes of a number, little-endian.
#[inline]
pub fn write_float(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

/// Reads an encoding front to back; never past its end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    pub fn byte(&mut self) -> Result<u8, CodecError> {
        let (&first, rest) = self.bytes.split_first().ok_or(CodecError::Truncated)?;
        self.bytes = rest;
        Ok(first)
    }

    #[inline]
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(CodecError::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    #[inline]
    pub fn unsigned(&mut self) -> Result<u64, CodecError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                return Err(CodecError::Overlong);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(CodecError::Overlong)
    }

    #[inline]
    pub fn signed(&mut self) -> Result<i64, CodecError> {
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    #[inline]
    pub fn float(&mut self) -> Result<f64, CodecError> {
        let bytes = self.bytes(8)?.try_into().map_err(|_| CodecError::Truncated)?;
        Ok(f64::from_bits(u64::from_le_bytes(bytes)))
    }

    /// An element count, checked against what is left: `min_size` is the least number of bytes
    /// an element takes, so a forged count can't reserve more memory than the input is worth.
    pub fn count(&mut self, min_size: usize) -> Result<usize, CodecError> {
        let count = usize::try_from(self.unsigned()?).map_err(|_| CodecError::Overlong)?;
        if count > self.remaining() / min_size.max(1) {
            return Err(CodecError::Truncated);
        }
        Ok(count)
    }

    /// A length-prefixed string.
    pub fn text(&mut self) -> Result<&'a str, CodecError> {
        let length = self.count(1)?;
        std::str::from_utf8(self.bytes(length)?).map_err(|_| CodecError::Invalid("a text that is not UTF-8"))
    }

    pub fn finish(self) -> Result<(), CodecError> {
        match self.bytes.len() {
            0 => Ok(()),
            left => Err(CodecError::TrailingBytes(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let values = [0, 1, -1, 63, 64, -64, -65, 300, i64::MAX, i64::MIN];
        let mut out = Vec::new();
        for value in values {
            write_signed(&mut out, value);
            write_unsigned(&mut out, value as u64);
        }
        let mut reader = Reader::new(&out);
        for value in values {
            assert_eq!(reader.signed(), Ok(value));
            assert_eq!(reader.unsigned(), Ok(value as u64));
        }
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn refuses_damage() {
        assert_eq!(Reader::new(&[0x80]).unsigned(), Err(CodecError::Truncated));
        assert_eq!(Reader::new(&[0xff; 11]).unsigned(), Err(CodecError::Overlong));
        assert_eq!(Reader::new(&[0xff, 0xff, 0x7f, 1]).count(1), Err(CodecError::Truncated));
        assert_eq!(Reader::new(&[1, 2]).finish(), Err(CodecError::TrailingBytes(2)));
    }
}
