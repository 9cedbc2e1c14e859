//! AMD's device bitcode for a clang that is newer than the ROCm beside it.
//!
//! A ROCm has one bitcode file of one constant per architecture, and an older one lacks the newer
//! architectures' files. A directory of links to all it has, plus the missing file built by the same clang,
//! stands in for the bitcode of a newer ROCm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::hash::{Fields, hex};
use super::toolchain::{ANSWER, Toolchain, run};
use super::{Architecture, CompileError};

/// The bitcode directory of a ROCm's root, by the layouts in use: ROCm's, Debian's.
pub(crate) fn bitcode_of(root: &Path) -> Option<PathBuf> {
    ["amdgcn/bitcode", "lib/amdgcn/bitcode", "lib/x86_64-linux-gnu/amdgcn/bitcode"]
        .into_iter()
        .map(|layout| root.join(layout))
        .find(|dir| dir.join("ockl.bc").is_file())
}

/// The directory to compile `arch` with: the ROCm's own, or one under `room` completed for `arch`. None where
/// there is no ROCm bitcode at all; clang then says what it misses.
pub(crate) fn directory_for(
    toolchain: &Toolchain,
    arch: &Architecture,
    room: &Path,
) -> Result<Option<PathBuf>, CompileError> {
    let Some(bitcode) = toolchain.rocm.as_deref().and_then(bitcode_of) else { return Ok(None) };
    let isa_file = format!("oclc_isa_version_{}.bc", arch.number());
    if bitcode.join(&isa_file).is_file() {
        return Ok(Some(bitcode));
    }
    let Some(isa_version) = isa_version(arch.number()) else { return Ok(Some(bitcode)) };
    let mut fields = Fields::new("device bitcode");
    fields.add(bitcode.as_os_str().as_encoded_bytes());
    fields.add(toolchain.digest.as_bytes()).add(isa_file.as_bytes());
    let name: String = hex(&fields.finish()).chars().take(16).collect();
    let finished = room.join(format!("{}-{name}", arch.number()));
    if finished.join(&isa_file).is_file() {
        return Ok(Some(finished));
    }
    fs::create_dir_all(room).map_err(CompileError::file("cannot create the folder", room))?;
    let building =
        tempfile::tempdir_in(room).map_err(CompileError::file("cannot create a folder in", room))?;
    link_all(&bitcode, building.path())?;
    build_constant(toolchain, isa_version, &building.path().join(&isa_file))?;
    // Another process may have been faster: its directory is the same. A directory whose links went stale
    // would have had another name.
    match fs::rename(building.path(), &finished) {
        Ok(()) => drop(building.keep()),
        Err(_) if finished.join(&isa_file).is_file() => {}
        Err(error) => return Err(CompileError::file("cannot move bitcode to", &finished)(error)),
    }
    Ok(Some(finished))
}

fn link_all(from: &Path, to: &Path) -> Result<(), CompileError> {
    let entries = fs::read_dir(from).map_err(CompileError::file("cannot list the bitcode in", from))?;
    for entry in entries {
        let entry = entry.map_err(CompileError::file("cannot list the bitcode in", from))?;
        let link = to.join(entry.file_name());
        symlink(entry.path(), &link).map_err(CompileError::file("cannot make the link", &link))?;
    }
    Ok(())
}

/// Writes the module that ROCm's device libraries would have: one constant, merged where it is used.
fn build_constant(toolchain: &Toolchain, isa_version: u32, file: &Path) -> Result<(), CompileError> {
    let module = format!(
        "target triple = \"amdgcn-amd-amdhsa\"\n@__oclc_ISA_version = linkonce_odr protected \
         local_unnamed_addr addrspace(4) constant i32 {isa_version}, align 4\n"
    );
    let text = file.with_extension("ll");
    fs::write(&text, module).map_err(CompileError::file("cannot write", &text))?;
    let arguments = ["-x", "ir", "--target=amdgcn-amd-amdhsa", "-nogpulib", "-c", "-emit-llvm"];
    let mut arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string().into()).collect();
    arguments.extend([text.clone().into_os_string(), "-o".into(), file.as_os_str().to_owned()]);
    let output = run(&toolchain.path, arguments, None, ANSWER)?;
    let removed = fs::remove_file(&text);
    removed.map_err(CompileError::file("cannot remove", &text))?;
    if output.status.success() && file.is_file() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let what = format!("building device bitcode ended with {}: {}", output.status, said.trim());
    Err(CompileError::Unusable { compiler: toolchain.path.clone(), what, source: None })
}

/// Major, minor and stepping as device code sees them: 9402 for gfx942, 9010 for gfx90a, 11001 for gfx1101.
fn isa_version(number: &str) -> Option<u32> {
    let (major_and_minor, stepping) = number.split_at_checked(number.len().checked_sub(1)?)?;
    let (major, minor) = major_and_minor.split_at_checked(major_and_minor.len().checked_sub(1)?)?;
    let major: u32 = major.parse().ok()?;
    let minor = u32::from_str_radix(minor, 16).ok()?;
    let stepping = u32::from_str_radix(stepping, 16).ok()?;
    major.checked_mul(1000)?.checked_add(minor * 100)?.checked_add(stepping)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isa_versions_are_those_of_the_device_libraries() {
        for (number, version) in
            [("906", 9006), ("90a", 9010), ("942", 9402), ("1030", 10300), ("1100", 11000), ("1101", 11001)]
        {
            assert_eq!(isa_version(number), Some(version), "{number}");
        }
        assert_eq!(isa_version("11-generic"), None);
        assert_eq!(isa_version("9"), None);
        assert_eq!(isa_version(""), None);
    }
}
