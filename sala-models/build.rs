//! Compiles the kernels for graphics cards: to PTX with the feature `cuda`, and for the processor with
//! `cuda-emulated`, which sets the configuration `sala_emulated` where there is a C++ compiler.

#![allow(clippy::print_stdout, reason = "cargo reads it")]
#![allow(
    clippy::unnecessary_wraps,
    reason = "without features nothing can fail"
)]

use std::error::Error;

#[cfg(any(feature = "cuda", feature = "cuda-emulated"))]
const FOLDER: &str = "src/kernels/card/device";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(sala_emulated)");
    #[cfg(feature = "cuda")]
    compile_for_cards()?;
    #[cfg(feature = "cuda-emulated")]
    compile_for_processor();
    Ok(())
}

#[cfg(feature = "cuda")]
fn compile_for_cards() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    println!("cargo::rerun-if-env-changed=NVCC");
    cudaforge::KernelBuilder::new()
        .source_dir(FOLDER)
        .watch([FOLDER])
        .args(["-O3", "-std=c++17"])
        .build_ptx()?;
    Ok(())
}

#[cfg(feature = "cuda-emulated")]
fn compile_for_processor() {
    println!("cargo::rerun-if-changed={FOLDER}");
    let mut compiler = cc::Build::new();
    compiler
        .cpp(true)
        .std("c++17")
        .cpp_link_stdlib(None)
        .opt_level(2)
        .define("SALA_EMULATED", None)
        .flags(["-ffp-contract=off", "-fno-strict-aliasing", "-x", "c++"])
        .file(format!("{FOLDER}/operations.cu"));
    match compiler.try_compile("sala_emulated_operations") {
        Ok(()) => println!("cargo::rustc-cfg=sala_emulated"),
        Err(error) => println!(
            "cargo::warning=the kernels for graphics cards are not tested: no C++ compiler for them ({error})"
        ),
    }
}
