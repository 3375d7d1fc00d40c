//! Enumerations whose variants carry their documentation into the API's document. The library that derives schemas
//! drops the comments of variants without fields.

use utoipa::ToSchema;

/// An enumeration that knows what is said of its variants.
pub trait Documented: ToSchema + Sized + 'static {
    /// Every variant with its comment.
    const VARIANTS: &'static [(Self, &'static str)];
}

/// Declares an enumeration of variants without fields and keeps their comments as [`Documented::VARIANTS`].
macro_rules! documented {
    ($(#[$attribute:meta])* pub enum $name:ident { $($(#[doc = $line:literal])+ $variant:ident),+ $(,)? }) => {
        $(#[$attribute])*
        pub enum $name {
            $($(#[doc = $line])+ $variant,)+
        }

        impl $crate::documented::Documented for $name {
            const VARIANTS: &'static [(Self, &'static str)] =
                &[$(($name::$variant, concat!($($line),+)),)+];
        }
    };
}

pub(crate) use documented;
