//! Why an address has no name.

use std::fmt;

/// Why an address has no name. `Display` gives the words for the report: the cause, and what to do where
/// something can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No mapping holds the address.
    NotMapped,
    /// Executable memory without a file.
    MadeAtRunTime,
    /// The trampoline of the kernel's return probes, here one of somebody else.
    ReturnProbe,
    /// The kernel's vDSO.
    Vdso,
    /// Another of the kernel's named mappings, with its name.
    Named(String),
    /// The object could not be opened or is not a regular file; holds the reason.
    NotOpened(String),
    /// The object is not an ELF file that can be used; holds the reason.
    Malformed(String),
    /// The file offset lies in no segment of the object.
    OutsideSegments,
    /// The object has no symbols but, at most, those that it exports.
    Stripped,
    /// The object has symbols, none of which covers the address.
    NotCovered,
    /// The look-up failed; holds the reason.
    Failed(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped => {
                f.write_str("nothing is mapped there: unmapped since, or not a return address")
            }
            Self::MadeAtRunTime => f.write_str("code made at run time (JIT), no symbols"),
            Self::ReturnProbe => f.write_str("return address held by another return probe"),
            Self::Vdso => f.write_str("code of the kernel's vDSO, which has no file to look names up in"),
            Self::Named(name) => write!(f, "inside {name}, which is not a file with symbols"),
            Self::NotOpened(reason) => write!(f, "the object could not be opened: {reason}"),
            Self::Malformed(reason) => write!(f, "the object could not be read: {reason}"),
            Self::OutsideSegments => {
                f.write_str("the object's program headers do not cover this part of its file")
            }
            Self::Stripped => f.write_str(
                "the object has no symbols (stripped): install its debug symbols package, \
                 or keep the build's unstripped file",
            ),
            Self::NotCovered => f.write_str("none of the object's symbols covers this address"),
            Self::Failed(reason) => write!(f, "the object's symbols could not be read: {reason}"),
        }
    }
}
