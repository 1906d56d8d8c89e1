//! What a client was told that a statement's rows look like.
//!
//! PostgreSQL promises that a prepared statement's columns never change: after a DDL that would change them its next use
//! is refused (0A000, "cached plan must not change result type"). Statements that are parsed again on another backend
//! need the same promise towards whoever was told the columns (trap 31).

use std::hash::{DefaultHasher, Hasher};

use crate::wire::{Malformed, Reader};

/// The columns of a result: names, types and type modifiers, as PostgreSQL compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultShape(u64);

impl ResultShape {
    /// No rows: NoData. The text alone decides that, so it never changes.
    pub const NONE: Self = Self(0);

    /// None that a statement could ever have again: its columns have changed before anyone was told them.
    pub const NEVER: Self = Self(2);

    /// Reads the body of a RowDescription. Where a column comes from and the format that it is sent in are no part of
    /// the shape.
    pub fn of_row_description(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let mut hasher = DefaultHasher::new();
        for _ in 0..reader.i16()? {
            hasher.write(reader.cstr()?);
            hasher.write_u8(0);
            let _table_and_column = reader.bytes(6)?;
            hasher.write_u32(reader.u32()?);
            let _size = reader.i16()?;
            hasher.write_i32(reader.i32()?);
            let _format = reader.i16()?;
        }
        reader.finish()?;
        Ok(Self(hasher.finish() | 1))
    }

    /// Whether a change of the catalog could change it.
    pub fn has_rows(self) -> bool {
        self != Self::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(columns: &[(&str, u32, u32, i16)]) -> Vec<u8> {
        let mut body = i16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for (name, table, kind, format) in columns {
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            body.extend_from_slice(&table.to_be_bytes());
            body.extend_from_slice(&[0, 1]);
            body.extend_from_slice(&kind.to_be_bytes());
            body.extend_from_slice(&[0, 4, 0xff, 0xff, 0xff, 0xff]);
            body.extend_from_slice(&format.to_be_bytes());
        }
        body
    }

    fn shape(columns: &[(&str, u32, u32, i16)]) -> ResultShape {
        ResultShape::of_row_description(&description(columns)).unwrap()
    }

    #[test]
    fn trap_31_columns_differ_by_name_type_and_number_only() {
        let one = shape(&[("x", 5, 23, 0)]);
        assert_eq!(one, shape(&[("x", 7, 23, 1)]));
        assert_ne!(one, shape(&[("y", 5, 23, 0)]));
        assert_ne!(one, shape(&[("x", 5, 25, 0)]));
        assert_ne!(one, shape(&[("x", 5, 23, 0), ("x", 5, 23, 0)]));
        assert!(one.has_rows() && shape(&[]).has_rows() && !ResultShape::NONE.has_rows());
    }

    #[test]
    fn trap_31_a_description_that_is_cut_or_too_long_has_no_shape() {
        let whole = description(&[("x", 5, 23, 0)]);
        for len in 0..whole.len() {
            assert!(ResultShape::of_row_description(&whole[..len]).is_err(), "{len}");
        }
        assert!(ResultShape::of_row_description(&[whole, vec![0]].concat()).is_err());
    }
}
