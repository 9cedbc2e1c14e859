//! Names of GPU architectures, as compilers take them and libraries report them.

use std::fmt;
use std::str::FromStr;

use super::{CompileError, Platform};

/// A GPU architecture: `gfx90a`, `gfx90a:sramecc+:xnack-`, `sm_90`, `sm_90a`.
///
/// The text is kept whole, features included: two feature sets are two architectures to the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Architecture {
    platform: Platform,
    text: String,
}

impl Architecture {
    /// What to compile for a device that reports `text`: code for that device alone, so with the instructions
    /// that NVIDIA keeps to one generation (`sm_90a` for `sm_90`; none before that).
    ///
    /// # Errors
    /// `UnknownArchitecture`, as parsing.
    pub fn of_device(text: &str) -> Result<Self, CompileError> {
        let arch: Self = text.parse()?;
        let has_own_instructions = arch.number().parse::<u32>().is_ok_and(|number| number >= 90);
        match arch.platform {
            Platform::Nvidia if has_own_instructions => format!("{arch}a").parse(),
            Platform::Nvidia | Platform::Amd => Ok(arch),
        }
    }

    /// Whose GPU it is.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The whole name, features included.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The processor without its features: `gfx90a` of `gfx90a:xnack-`, `sm_90a` itself.
    pub fn processor(&self) -> &str {
        self.text.split(':').next().unwrap_or(&self.text)
    }

    /// What follows `gfx` or `sm_`: `90a`.
    pub(crate) fn number(&self) -> &str {
        let processor = self.processor();
        processor.strip_prefix("gfx").or_else(|| processor.strip_prefix("sm_")).unwrap_or(processor)
    }

    /// A name for files: the whole name with `:` and `+` replaced, distinct for distinct names.
    pub fn file_name(&self) -> String {
        self.text.replace(':', "_").replace('+', "-on")
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Architecture {
    type Err = CompileError;

    fn from_str(text: &str) -> Result<Self, CompileError> {
        let unknown = || CompileError::UnknownArchitecture { text: text.to_owned() };
        let mut parts = text.split(':');
        let processor = parts.next().unwrap_or_default();
        let (platform, number) = match (processor.strip_prefix("gfx"), processor.strip_prefix("sm_")) {
            (Some(number), _) => (Platform::Amd, number),
            (None, Some(number)) => (Platform::Nvidia, number),
            (None, None) => return Err(unknown()),
        };
        let well_formed = match platform {
            // The stepping is hexadecimal (90a), generic targets have words (11-generic).
            Platform::Amd => {
                let is_name = |c: char| c.is_ascii_digit() || c.is_ascii_lowercase() || c == '-';
                number.starts_with(|c: char| c.is_ascii_digit()) && number.chars().all(is_name)
            }
            Platform::Nvidia => {
                let digits = number.trim_end_matches(['a', 'f']);
                number.len() - digits.len() <= 1
                    && digits.len() >= 2
                    && digits.chars().all(|c| c.is_ascii_digit())
            }
        };
        let features_fit = parts.all(|feature| {
            let name = feature.strip_suffix(['+', '-']).unwrap_or_default();
            platform == Platform::Amd && !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase())
        });
        if well_formed && features_fit {
            Ok(Self { platform, text: text.to_owned() })
        } else {
            Err(unknown())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_recognised() {
        for (text, platform, processor) in [
            ("gfx906", Platform::Amd, "gfx906"),
            ("gfx90a:sramecc+:xnack-", Platform::Amd, "gfx90a"),
            ("gfx11-generic", Platform::Amd, "gfx11-generic"),
            ("sm_90", Platform::Nvidia, "sm_90"),
            ("sm_90a", Platform::Nvidia, "sm_90a"),
            ("sm_120", Platform::Nvidia, "sm_120"),
        ] {
            let arch: Architecture = text.parse().expect(text);
            assert_eq!((arch.platform(), arch.processor(), arch.as_str()), (platform, processor, text));
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "gfx",
            "sm_",
            "sm_9",
            "sm_90aa",
            "sm_90:xnack+",
            "gfx90a:",
            "gfx90a:xnack",
            "gfx90a/..",
            "x86",
        ] {
            let refused = text.parse::<Architecture>().expect_err(text).to_string();
            assert!(refused.contains(&format!("`{text}`")), "{refused}");
        }
    }

    #[test]
    fn a_device_gets_the_instructions_of_its_generation() {
        for (reported, arch) in [
            ("sm_80", "sm_80"),
            ("sm_89", "sm_89"),
            ("sm_90", "sm_90a"),
            ("sm_90a", "sm_90a"),
            ("sm_120", "sm_120a"),
            ("gfx906", "gfx906"),
            ("gfx90a:xnack-", "gfx90a:xnack-"),
        ] {
            assert_eq!(Architecture::of_device(reported).expect(reported).as_str(), arch);
        }
    }

    #[test]
    fn file_names_tell_features_apart() {
        let name = |text: &str| text.parse::<Architecture>().expect(text).file_name();
        assert_eq!(name("gfx90a"), "gfx90a");
        assert_ne!(name("gfx90a:xnack+"), name("gfx90a:xnack-"));
        assert!(!name("gfx90a:sramecc+:xnack-").contains([':', '+', '/']));
    }
}
