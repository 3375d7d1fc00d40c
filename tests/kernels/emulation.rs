//! Kernels on the host: the driver that is compiled once by the system's C++ compiler, and launches that go to it.
//!
//! A launch is run in three orders of a block's threads, each with another pattern in fresh shared memory and in buffers
//! that a kernel is to fill; all three must leave the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use bytemuck::Pod;
use causeway::numerics::device::DeviceChoice;
use causeway::numerics::kernels::launch::{HostArgument, HostLaunch, run_bytes};
use causeway::numerics::kernels::{SOURCES, THREADS};

/// In `faults.cu`.
pub const FAULTS: [&str; 7] = [
    "fault_none",
    "fault_missing_barrier",
    "fault_barrier_in_a_branch",
    "fault_unwritten_shared",
    "fault_past_buffer",
    "fault_past_static_shared",
    "fault_past_dynamic_shared",
];

const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O1",
    "-g1",
    // Products and sums are contracted where a kernel says so, as on a device.
    "-ffp-contract=off",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wall",
    // Loops are unrolled for devices alone.
    "-Wno-unknown-pragmas",
];

#[derive(Clone, Copy)]
pub enum Order {
    Forwards = 0,
    Backwards = 1,
    Shuffled = 2,
}

/// Orders of threads, each with what memory holds before it is written.
const RUNS: [(Order, u8); 3] = [
    (Order::Forwards, 0xff),
    (Order::Backwards, 0x7f),
    (Order::Shuffled, 0x55),
];

/// One launch of one kernel, its arguments in their order.
pub struct Launch {
    kernel: String,
    grid: [usize; 3],
    shared: usize,
    arguments: Vec<Argument>,
}

enum Argument {
    Number(Vec<u8>),
    Input(Vec<u8>),
    /// Holds these bytes before.
    Changed(Vec<u8>),
    /// So many bytes, all of which the kernel writes.
    Output(usize),
    Null,
}

impl Launch {
    pub fn new(kernel: impl Into<String>, grid: [usize; 3]) -> Self {
        Launch {
            kernel: kernel.into(),
            grid,
            shared: 0,
            arguments: Vec::new(),
        }
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Self {
        Launch {
            shared: bytes,
            ..self
        }
    }

    fn with(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }

    pub fn number<T: Pod>(self, value: T) -> Self {
        self.with(Argument::Number(bytemuck::bytes_of(&value).to_vec()))
    }

    /// A `u32`.
    pub fn count(self, value: usize) -> Self {
        self.number(value as u32)
    }

    pub fn input<T: Pod>(self, values: &[T]) -> Self {
        self.with(Argument::Input(bytemuck::cast_slice(values).to_vec()))
    }

    pub fn optional<T: Pod>(self, values: Option<&[T]>) -> Self {
        match values {
            Some(values) => self.input(values),
            None => self.null(),
        }
    }

    pub fn changed<T: Pod>(self, values: &[T]) -> Self {
        self.with(Argument::Changed(bytemuck::cast_slice(values).to_vec()))
    }

    pub fn output<T: Pod>(self, length: usize) -> Self {
        self.with(Argument::Output(length * size_of::<T>()))
    }

    pub fn null(self) -> Self {
        self.with(Argument::Null)
    }

    /// As a device is given it; what the kernel is to fill holds bytes of `pattern`.
    fn with_bytes(&self, pattern: u8) -> HostLaunch {
        let arguments = self.arguments.iter().map(|argument| match argument {
            Argument::Number(bytes) => HostArgument::Number(bytes.clone()),
            Argument::Input(bytes) => HostArgument::Read(bytes.clone()),
            Argument::Changed(bytes) => HostArgument::Written(bytes.clone()),
            Argument::Output(length) => HostArgument::Written(vec![pattern; *length]),
            Argument::Null => HostArgument::Null,
        });
        HostLaunch {
            kernel: self.kernel.clone(),
            grid: self.grid.map(|blocks| blocks as u32),
            shared: self.shared as u32,
            arguments: arguments.collect(),
        }
    }

    fn bytes(&self, order: Order, pattern: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let word = |bytes: &mut Vec<u8>, value: usize| {
            bytes.extend((value as u32).to_le_bytes());
        };
        word(&mut bytes, self.kernel.len());
        bytes.extend(self.kernel.as_bytes());
        for extent in self.grid {
            word(&mut bytes, extent);
        }
        word(&mut bytes, THREADS as usize);
        word(&mut bytes, self.shared);
        // The seed of the shuffled order is any number.
        for value in [
            order as usize,
            14,
            usize::from(pattern),
            self.arguments.len(),
        ] {
            word(&mut bytes, value);
        }
        for argument in &self.arguments {
            let fresh;
            let (kind, content) = match argument {
                Argument::Number(content) => (0, content),
                Argument::Input(content) => (1, content),
                Argument::Changed(content) => (2, content),
                Argument::Output(length) => {
                    fresh = vec![pattern; *length];
                    (2, &fresh)
                }
                Argument::Null => {
                    fresh = Vec::new();
                    (3, &fresh)
                }
            };
            word(&mut bytes, kind);
            bytes.extend((content.len() as u64).to_le_bytes());
            bytes.extend(content);
        }
        bytes
    }
}

/// A launch as the engine makes it.
impl From<&HostLaunch> for Launch {
    fn from(launch: &HostLaunch) -> Self {
        let arguments = launch.arguments.iter().map(|argument| match argument {
            HostArgument::Number(bytes) => Argument::Number(bytes.clone()),
            HostArgument::Read(bytes) => Argument::Input(bytes.clone()),
            HostArgument::Written(bytes) => Argument::Changed(bytes.clone()),
            HostArgument::Null => Argument::Null,
        });
        Launch {
            kernel: launch.kernel.clone(),
            grid: launch.grid.map(|blocks| blocks as usize),
            shared: launch.shared as usize,
            arguments: arguments.collect(),
        }
    }
}

/// What a launch left in the buffers that it may write, in their order.
pub struct Left(std::vec::IntoIter<Vec<u8>>);

impl Left {
    pub fn take<T: Pod>(&mut self) -> Vec<T> {
        let bytes = self.0.next().expect("another buffer that was written");
        bytemuck::pod_collect_to_vec(&bytes)
    }
}

/// A driver at work.
pub struct Emulation {
    process: Child,
    input: ChildStdin,
    output: ChildStdout,
    /// Launches that were compared with an oracle, by kernel.
    pub cases: BTreeMap<String, usize>,
}

impl Emulation {
    pub fn start() -> Self {
        Self::start_with(Stdio::inherit())
    }

    /// The same, its complaints going elsewhere.
    pub fn start_with(complaints: Stdio) -> Self {
        let mut process = Command::new(driver())
            // Fibres have stacks of their own, which the first of these would take for returned ones.
            .env(
                "ASAN_OPTIONS",
                "detect_stack_use_after_return=0:detect_leaks=0",
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .expect("the driver starts");
        Emulation {
            input: process.stdin.take().expect("a pipe"),
            output: process.stdout.take().expect("a pipe"),
            process,
            cases: BTreeMap::new(),
        }
    }

    /// Runs a launch in all orders and returns what it left. Where `CAUSEWAY_TEST_DEVICE` names a device, that one runs it.
    pub fn run(&mut self, launch: &Launch) -> Left {
        let device = std::env::var("CAUSEWAY_TEST_DEVICE").ok();
        let device = device.map(|named| {
            let choice: DeviceChoice = named.parse().expect("a device");
            choice.open().expect("a device that is there")
        });
        let mut left: Option<Vec<Vec<u8>>> = None;
        for (order, pattern) in RUNS {
            let here = match &device {
                Some(device) => run_bytes(device, &launch.with_bytes(pattern)).expect("a launch"),
                None => self
                    .run_once(launch, order, pattern)
                    .unwrap_or_else(|| panic!("the driver ended in {}", launch.kernel)),
            };
            match &left {
                None => left = Some(here),
                Some(before) => {
                    for (buffer, (before, here)) in before.iter().zip(&here).enumerate() {
                        let place = before
                            .iter()
                            .zip(here)
                            .position(|(one, other)| one != other);
                        assert_eq!(
                            place, None,
                            "{}: written buffer {buffer} depends on the order of threads, or was not filled",
                            launch.kernel
                        );
                    }
                }
            }
        }
        *self.cases.entry(launch.kernel.clone()).or_default() += 1;
        Left(left.expect("three runs").into_iter())
    }

    /// Runs a launch in one order; none if the driver ended.
    pub fn run_once(&mut self, launch: &Launch, order: Order, pattern: u8) -> Option<Vec<Vec<u8>>> {
        self.input.write_all(&launch.bytes(order, pattern)).ok()?;
        self.input.flush().ok()?;
        let mut left = Vec::new();
        for argument in &launch.arguments {
            let length = match argument {
                Argument::Changed(content) => content.len(),
                Argument::Output(length) => *length,
                _ => continue,
            };
            let mut bytes = vec![0; length];
            self.output.read_exact(&mut bytes).ok()?;
            left.push(bytes);
        }
        Some(left)
    }

    /// The exit status and the complaints of a driver that has nothing more to do.
    pub fn end(self) -> (Option<i32>, String) {
        drop(self.input);
        drop(self.output);
        let ended = self.process.wait_with_output().expect("the driver's end");
        let complaints = String::from_utf8_lossy(&ended.stderr).into_owned();
        (ended.status.code(), complaints)
    }
}

/// The compiled driver: with all kernels of [`SOURCES`], in the text that a device's compiler is given, and those that have
/// faults.
fn driver() -> &'static Path {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (kernels, own) = (
            root.join("src/numerics/kernels"),
            root.join("tests/kernels"),
        );
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        // What has not changed since it was compiled is not compiled again.
        let mut hash = DefaultHasher::new();
        (&compiler, FLAGS, FAULTS).hash(&mut hash);
        for file in ["driver.cpp", "emulated_cuda.h", "faults.cu"] {
            fs::read(own.join(file)).expect(file).hash(&mut hash);
        }
        let mut sources = String::new();
        let mut names: Vec<&str> = FAULTS.to_vec();
        for source in &SOURCES {
            source.hash().hash(&mut hash);
            sources += &source.text();
            names.extend(source.kernels);
        }
        sources += "#include \"faults.cu\"\n";
        let names: String = names
            .iter()
            .map(|name| format!("RUNNABLE({name})\n"))
            .collect();
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{:016x}", hash.finish()));
        let driver = directory.join("driver");
        if driver.exists() {
            return driver;
        }
        fs::create_dir_all(&directory).expect("a directory for the driver");
        fs::write(directory.join("sources.inc"), sources).expect("the list of sources");
        fs::write(directory.join("kernels.inc"), names).expect("the list of kernels");
        let unfinished = directory.join(format!("driver-{}", std::process::id()));
        let mut words = compiler.split_whitespace();
        let program = words.next().expect("a compiler's name");
        // GCC guards no arrays of sections of their own unless it is told to; Clang does, and knows no such flag.
        let version = Command::new(program).arg("--version").output();
        let is_clang =
            version.is_ok_and(|told| String::from_utf8_lossy(&told.stdout).contains("clang"));
        let sections = (!is_clang).then_some("-fsanitize-sections=emulated_shared");
        let status = Command::new(program)
            .args(words)
            .args(FLAGS)
            .args(sections)
            .arg("-include")
            .arg(own.join("emulated_cuda.h"))
            .args([&directory, &kernels, &own].map(|path| format!("-I{}", path.display())))
            .arg(own.join("driver.cpp"))
            .arg("-o")
            .arg(&unfinished)
            .status();
        let status = status.unwrap_or_else(|error| panic!("{compiler} does not start: {error}"));
        assert!(status.success(), "{compiler} could not compile the kernels");
        fs::rename(&unfinished, &driver).expect("the driver in its place");
        driver
    })
}
