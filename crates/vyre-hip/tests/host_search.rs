//! Where libraries are looked for, and which one is taken.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vyre_hip::OpenError;
use vyre_hip::api::{Api, Outcome, Platform, Search};

fn search(variables: &[(&str, &str)]) -> Result<Search, OpenError> {
    Search::from_variables(|name| {
        variables.iter().find(|(set, _)| *set == name).map(|(_, value)| OsString::from(value))
    })
}

fn places(search: &Search) -> Vec<String> {
    search.candidates().iter().map(|place| place.display().to_string()).collect()
}

#[test]
fn sonames_are_tried_newest_first_and_cuda_last() {
    let places = places(&search(&[]).unwrap());
    let wanted = ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"];
    assert_eq!(places[..4], wanted);
    assert_eq!(places.last().unwrap(), "libcuda.so.1");
}

#[test]
fn roots_come_first_and_an_explicit_library_alone() {
    let rooted = places(&search(&[("ROCM_PATH", "/nowhere/a"), ("HIP_PATH", "/nowhere/b")]).unwrap());
    let wanted = [
        "/nowhere/a/lib/libamdhip64.so",
        "/nowhere/a/lib64/libamdhip64.so",
        "/nowhere/b/lib/libamdhip64.so",
        "/nowhere/b/lib64/libamdhip64.so",
        "libamdhip64.so.7",
    ];
    assert_eq!(rooted[..5], wanted);
    let explicit = search(&[("VYRE_HIP_LIBRARY", "/nowhere/x.so"), ("ROCM_PATH", "/nowhere/a")]).unwrap();
    assert_eq!(places(&explicit), ["/nowhere/x.so"]);
}

#[test]
fn a_root_without_the_plain_name_offers_what_it_has() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("lib")).unwrap();
    let there = root.path().join("lib/libamdhip64.so.6");
    std::fs::write(&there, "").unwrap();
    let rooted = Search { roots: vec![root.path().to_owned()], ..Search::default() };
    assert_eq!(rooted.candidates()[0], there);
}

#[test]
fn the_platform_narrows_the_search() {
    assert_eq!(places(&search(&[("VYRE_HIP_PLATFORM", "nvidia")]).unwrap()), ["libcuda.so.1"]);
    let amd = places(&search(&[("VYRE_HIP_PLATFORM", "amd")]).unwrap());
    assert!(amd.iter().all(|place| place.contains("amdhip64")), "{amd:?}");
    assert_eq!(search(&[("VYRE_HIP_PLATFORM", ""), ("ROCM_PATH", "")]).unwrap(), Search::default());
    let error = search(&[("VYRE_HIP_PLATFORM", "intel")]).unwrap_err();
    assert_eq!(error, OpenError::UnknownPlatform { value: "intel".to_owned() });
}

#[test]
fn a_library_that_is_not_there_is_listed_with_the_reason() {
    let path = PathBuf::from("/nowhere/libamdhip64.so");
    let search = Search { library: Some(path.clone()), ..Search::default() };
    let error = Api::open_with(&search).unwrap_err();
    assert!(matches!(&error, OpenError::LibraryNotFound { tried } if tried.len() == 1), "{error}");
    assert_eq!(error.tried()[0].library, path);
    assert!(
        matches!(&error.tried()[0].outcome, Outcome::NotLoaded(reason) if reason.contains("No such file"))
    );
    assert!(error.to_string().contains("/nowhere/libamdhip64.so"), "{error}");
}

/// Compiles a library with those functions: each returns 0, `count` writes how many devices there are.
fn library(folder: &Path, soname: &str, functions: &[&str], count: (&str, i32)) -> PathBuf {
    let mut source = String::from("#![allow(non_snake_case)]\n");
    for name in functions.iter().filter(|name| **name != count.0) {
        source += &format!("#[unsafe(no_mangle)] pub extern \"C\" fn {name}() -> i32 {{ 0 }}\n");
    }
    source += &format!(
        "#[unsafe(no_mangle)] pub unsafe extern \"C\" fn {}(n: *mut i32) -> i32 {{ unsafe {{ *n = {} }}; 0 }}\n",
        count.0, count.1
    );
    let (input, output) = (folder.join(format!("{soname}.rs")), folder.join(soname));
    std::fs::write(&input, source).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = std::process::Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "fake", "-C"])
        .arg(format!("link-arg=-Wl,-soname,{soname}"))
        .arg("-o")
        .args([&output, &input])
        .status()
        .unwrap();
    assert!(status.success(), "the fake library does not compile");
    output
}

fn without<'a>(names: &[&'a str], left_out: &str) -> Vec<&'a str> {
    names.iter().copied().filter(|name| *name != left_out).collect()
}

#[test]
fn the_first_vendor_with_a_device_is_taken_and_each_lack_has_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("lib")).unwrap();
    let lib = folder.path().join("lib");
    let hip = vyre_hip::api::Symbols::required(Platform::Amd);
    let cuda = vyre_hip::api::Symbols::required(Platform::Nvidia);
    let only = |library: PathBuf| Search { library: Some(library), ..Search::default() };

    let old = library(&lib, "old.so", &without(&hip, "hipModuleLoadData"), ("hipGetDeviceCount", 1));
    let error = Api::open_with(&only(old)).unwrap_err();
    assert!(matches!(error, OpenError::MissingSymbol { symbol: "hipModuleLoadData", .. }), "{error}");

    let other = library(&lib, "other.so", &[], ("something", 1));
    let error = Api::open_with(&only(other)).unwrap_err();
    assert!(matches!(error, OpenError::MissingSymbol { symbol: "hipInit", .. }), "{error}");

    let full = library(&lib, "full.so", &hip, ("hipGetDeviceCount", 3));
    let api = Api::open_with(&only(full.clone())).unwrap();
    assert_eq!((api.platform(), api.devices(), api.library()), (Platform::Amd, 3, full.as_path()));
    let wrong = Search { platform: Some(Platform::Nvidia), ..only(full) };
    let error = Api::open_with(&wrong).unwrap_err();
    assert!(matches!(error.tried()[0].outcome, Outcome::OtherPlatform(Platform::Amd)), "{error}");

    // Its symbols say whose it is, not its name.
    let named = library(&lib, "libcudart-or-so.so", &cuda, ("cuDeviceGetCount", 1));
    assert_eq!(Api::open_with(&only(named)).unwrap().platform(), Platform::Nvidia);

    // AMD's library without a device, then NVIDIA's with one. The loader takes a library of that soname that
    // is loaded already for the one that is asked for.
    let empty = library(&lib, "libamdhip64.so.7", &hip, ("hipGetDeviceCount", 0));
    let nvidia = library(&lib, "libcuda.so.1", &cuda, ("cuDeviceGetCount", 2));
    let error = Api::open_with(&only(empty.clone())).unwrap_err();
    assert!(matches!(error, OpenError::NoDevice { .. } | OpenError::PermissionDenied { .. }), "{error}");
    Api::open_with(&only(nvidia)).unwrap();
    if cfg!(feature = "hip-link") {
        return;
    }
    let both = Search { roots: vec![folder.path().to_owned()], ..Search::default() };
    let api = Api::open_with(&both).unwrap();
    assert_eq!((api.platform(), api.devices()), (Platform::Nvidia, 2));
    let tried: Vec<_> = api.attempts().iter().map(|attempt| attempt.library.clone()).collect();
    assert_eq!(tried, [empty, PathBuf::from("libcuda.so.1")]);
}
