//! The `landbridge` binary: arguments → config → run.

fn main() -> std::process::ExitCode {
    landbridge::cli::main()
}
