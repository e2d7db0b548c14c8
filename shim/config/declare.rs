//! The declaration of configuration keys. One line of [`settings!`] declares a key with its type, default, description and
//! flag; the settings of the daemon, of a file and of the flags follow from it, and so do the documents.

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKey {
    /// The table that contains the key; empty for the top level.
    pub table: &'static str,
    /// The name of the key in its table.
    pub name: &'static str,
    /// The description of the key.
    pub about: &'static str,
    /// The values that the key accepts.
    pub values: &'static str,
    /// An example value for a key without a default.
    pub example: Option<&'static str>,
    /// The name of the value of the key's flag, if it has one.
    pub flag: Option<&'static str>,
    /// Further information about the values.
    pub note: Option<&'static str>,
}

/// Declares the keys of a table. A key is
///
/// ```text
/// name: CheckedType => PlainType = default, "Description.";
/// ```
///
/// The value is read as the checked type and used as the plain type. The description may be followed by `example` (a value
/// for a key without a default), `flag` (the name of the flag's value) and `note`, in this order. A plain type of a key
/// without a default is an `Option`.
///
/// The macro defines the settings of the daemon, with their defaults; the settings of one source, all optional; the flags;
/// and the list `KEYS`. Keys that are tables follow after `tables`, fields that are not keys after `also`.
macro_rules! settings {
    (
        $table:literal, $config_about:literal, $config:ident, $layer:ident, $flags:ident;
        keys { $(
            $key:ident: $checked:ty => $plain:ty = $default:expr, $about:literal
            $(, example $example:literal)? $(, flag $value_name:literal)? $(, note $note:literal)?;
        )+ }
        tables { $($inner:ident: $inner_config:ident, $inner_layer:ident, $inner_flags:ident, $inner_about:literal;)* }
        also { $($(#[$also_attribute:meta])* $also:ident: $also_type:ty;)* }
    ) => {
        #[doc = $config_about]
        #[allow(rustdoc::invalid_html_tags, reason = "descriptions are plain text, also for files and help")]
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct $config {
            $(
                #[doc = $about]
                $(
                    #[doc = concat!(" Example: `", $example, "`.")]
                    #[serde(skip_serializing_if = "Option::is_none")]
                )?
                pub $key: $plain,
            )+
            $(#[doc = $inner_about] pub $inner: $inner_config,)*
            $($(#[$also_attribute])* pub $also: $also_type,)*
        }

        impl Default for $config {
            fn default() -> Self {
                Self {
                    $($key: $default,)+
                    $($inner: $inner_config::default(),)*
                    $($also: Default::default(),)*
                }
            }
        }

        impl $config {
            /// Overrides the settings that the layer contains.
            pub fn apply(&mut self, layer: $layer) {
                $(if let Some(value) = layer.$key {
                    self.$key = value.into();
                })+
                $(self.$inner.apply(layer.$inner);)*
            }
        }

        #[doc = concat!("The settings of [`", stringify!($config), "`] in one source. Every value is checked.")]
        #[allow(rustdoc::invalid_html_tags, reason = "descriptions are plain text, also for files and help")]
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $layer {
            $(#[doc = $about] pub $key: Option<$checked>,)+
            $(#[doc = $inner_about] pub $inner: $inner_layer,)*
        }

        impl $layer {
            /// The keys of this table, in the order in which they are printed.
            pub const KEYS: &[ConfigKey] = &[$(ConfigKey {
                table: $table,
                name: stringify!($key),
                about: $about,
                values: <$checked as Described>::VALUES,
                example: $crate::config::declare::optional!($($example)?),
                flag: $crate::config::declare::optional!($($value_name)?),
                note: $crate::config::declare::optional!($($note)?),
            },)+];

            /// The tables below this one, with the description and the keys of each.
            pub const TABLES: &[(&'static str, &'static str, &'static [ConfigKey])] =
                &[$((stringify!($inner), $inner_about, $inner_layer::KEYS),)*];
        }

        #[doc = concat!("The flags that override settings of [`", stringify!($config), "`].")]
        #[allow(rustdoc::invalid_html_tags, reason = "descriptions are plain text, also for files and help")]
        #[derive(Clone, Debug, Default, clap::Args)]
        pub struct $flags {
            $($(
                #[doc = $about]
                #[arg(long, value_name = $value_name, help = help($table, stringify!($key), $about))]
                pub(crate) $key: Option<$checked>,
            )?)+
            $(#[command(flatten)] pub(crate) $inner: $inner_flags,)*
        }

        impl From<$flags> for $layer {
            #[allow(unused_variables, reason = "a table can have no flags")]
            fn from(flags: $flags) -> Self {
                Self {
                    $($key: $crate::config::declare::flag!(flags, $key $(, $value_name)?),)+
                    $($inner: flags.$inner.into(),)*
                }
            }
        }
    };
}

/// A value that may be missing in a declaration.
macro_rules! optional {
    () => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}

/// The value of a key's flag, if it has one.
macro_rules! flag {
    ($flags:ident, $key:ident) => {
        None
    };
    ($flags:ident, $key:ident, $value_name:literal) => {
        $flags.$key
    };
}

pub(super) use {flag, optional, settings};
