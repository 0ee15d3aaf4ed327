//! How layouts are written down: once, as a table of fields, from which encoding, decoding and the checks of the table
//! come.

/// A value with a fixed place in a structure; little-endian.
pub(super) trait Field: Sized {
    fn load(bytes: &[u8], at: usize) -> Self;
    fn store(&self, bytes: &mut [u8], at: usize);
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl Field for $number {
            #[inline]
            fn load(bytes: &[u8], at: usize) -> Self {
                let mut value = [0; size_of::<Self>()];
                value.copy_from_slice(&bytes[at..at + size_of::<Self>()]);
                Self::from_le_bytes(value)
            }
            #[inline]
            fn store(&self, bytes: &mut [u8], at: usize) {
                bytes[at..at + size_of::<Self>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
number!(u8, u16, u32, u64, u128);

impl<T: Field + Copy + Default, const N: usize> Field for [T; N] {
    fn load(bytes: &[u8], at: usize) -> Self {
        core::array::from_fn(|index| T::load(bytes, at + index * size_of::<T>()))
    }
    fn store(&self, bytes: &mut [u8], at: usize) {
        for (index, value) in self.iter().enumerate() {
            value.store(bytes, at + index * size_of::<T>());
        }
    }
}

/// A structure of the wire: `NAME: LENGTH { field: type = offset, … }`, with the fields that are used; what lies between
/// them is ignored when it is read and zero when it is written. Gives `decode`, `encode` and `LEN`.
macro_rules! structure {
    (
        $(#[$doc:meta])*
        $name:ident: $len:literal {
            $($(#[$field_doc:meta])* $field:ident: $type:ty = $at:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        const _: () = {
            let mut end = 0;
            $(
                assert!($at >= end, "the fields are in order and do not overlap");
                end = $at + size_of::<$type>();
            )*
            assert!(end <= $len, "the fields lie inside the structure");
        };

        impl $name {
            /// Bytes on the wire.
            pub const LEN: usize = $len;

            /// Reads it from the first bytes of a buffer, of which there are at least [`Self::LEN`].
            #[must_use]
            pub fn decode(bytes: &[u8]) -> Self {
                let bytes = &bytes[..$len];
                Self { $($field: $crate::nvme::bits::layout::Field::load(bytes, $at),)* }
            }

            /// Writes it to the first bytes of a buffer, of which there are at least [`Self::LEN`]; what is no field of it
            /// becomes zero.
            pub fn encode(&self, bytes: &mut [u8]) {
                let bytes = &mut bytes[..$len];
                bytes.fill(0);
                $($crate::nvme::bits::layout::Field::store(&self.$field, bytes, $at);)*
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::decode(&[0; $len])
            }
        }
    };
}

/// A number made of bit fields: `NAME: type { getter, setter = low bit, width; … }`. Setters cut their value to the
/// field's width.
macro_rules! bit_fields {
    (
        $(#[$doc:meta])*
        $name:ident: $type:ty {
            $($(#[$field_doc:meta])* $get:ident, $with:ident = $low:literal, $width:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub $type);

        const _: () = {
            let mut end = 0;
            $(
                assert!($low >= end, "the fields are in order and do not overlap");
                end = $low + $width;
            )*
            assert!(end <= <$type>::BITS, "the fields lie inside the number");
        };

        impl $name {
            $(
                $(#[$field_doc])*
                #[must_use]
                #[inline]
                pub const fn $get(self) -> $type {
                    self.0 >> $low & (!0 >> (<$type>::BITS - $width))
                }

                #[doc = concat!("With another value of [`Self::", stringify!($get), "`].")]
                #[must_use]
                #[inline]
                pub const fn $with(self, value: $type) -> Self {
                    let mask: $type = !0 >> (<$type>::BITS - $width);
                    Self(self.0 & !(mask << $low) | (value & mask) << $low)
                }
            )*
        }
    };
}

pub(super) use bit_fields;
pub(super) use structure;
