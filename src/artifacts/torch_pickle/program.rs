//! The stack machine of a pickle, cut down to what a dictionary of tensors needs.
//!
//! Instructions: those of pickle protocol 2 that `torch.save` emits for such a dictionary; any other is an
//! error. Names: [`Global`]'s, none of which is called; they only label what the next instruction builds. All
//! memory is bounded: by the program's length, and by the limits below. Tuples nest at most [`DEEPEST_TUPLE`]
//! deep, so that dropping them cannot exhaust the call stack, and dictionaries live in an arena and never own
//! one another.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use candle_core::DType;

/// How deep tuples may nest; a tensor's arguments nest two deep.
const DEEPEST_TUPLE: usize = 8;
/// No tensor has more dimensions.
const MOST_DIMENSIONS: usize = 8;
/// No name is longer.
const LONGEST_TEXT: usize = 4096;
/// The stack never holds more values; `torch.save` adds a dictionary's entries a thousand at a time.
const TALLEST_STACK: usize = 1 << 16;
/// No dictionary has more tensors.
const MOST_TENSORS: usize = 1 << 16;

/// One entry `data/<key>` of the archive, as the program describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub key: Rc<str>,
    pub dtype: DType,
    /// In elements.
    pub count: usize,
}

/// A tensor as the program describes it; nothing in it has been checked against the storage.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub storage: Storage,
    /// These three count elements, not bytes.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The names a program may mention.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(DType),
}

impl Global {
    fn parse(module: &str, name: &str) -> Result<Self, String> {
        let storage = |dtype| Ok(Global::Storage(dtype));
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
            ("torch", "FloatStorage") => storage(DType::F32),
            ("torch", "DoubleStorage") => storage(DType::F64),
            ("torch", "HalfStorage") => storage(DType::F16),
            ("torch", "BFloat16Storage") => storage(DType::BF16),
            ("torch", "LongStorage") => storage(DType::I64),
            ("torch", "IntStorage") => storage(DType::I32),
            ("torch", "ShortStorage") => storage(DType::I16),
            ("torch", "ByteStorage" | "BoolStorage") => storage(DType::U8),
            _ => Err(format!(
                "mentions {module}.{name}; only what a plain dictionary of tensors needs is allowed"
            )),
        }
    }
}

#[derive(Debug, Clone)]
enum Value {
    None,
    Bool,
    Integer(i64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>, usize),
    /// An index into the machine's arena.
    Dictionary(usize),
    Global(Global),
    Storage(Storage),
    Tensor(Rc<View>),
}

impl Value {
    /// What the value is, for errors.
    fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool => "a boolean",
            Value::Integer(_) => "an integer",
            Value::Text(_) => "a text",
            Value::Tuple(..) => "a tuple",
            Value::Dictionary(_) => "a dictionary",
            Value::Global(_) => "a name",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }

    fn size(&self, what: &str) -> Result<usize, String> {
        match self {
            Value::Integer(value) => usize::try_from(*value)
                .map_err(|_| format!("{what} is {value}; it must not be negative")),
            other => Err(format!("{what} is {}; it must be an integer", other.kind())),
        }
    }

    fn sizes(&self, what: &str) -> Result<Vec<usize>, String> {
        match self {
            Value::Tuple(items, _) if items.len() <= MOST_DIMENSIONS => {
                items.iter().map(|item| item.size(what)).collect()
            }
            other => Err(format!(
                "{what} is {}; it must be a tuple of at most {MOST_DIMENSIONS} integers",
                other.kind()
            )),
        }
    }
}

/// Runs `program` and returns the dictionary it leaves. Errors say what is wrong, at which byte.
pub(super) fn run(program: &[u8]) -> Result<Vec<(String, View)>, String> {
    let mut machine = Machine {
        program,
        position: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        dictionaries: Vec::new(),
    };
    loop {
        let at = machine.position;
        match machine.step() {
            Ok(false) if machine.stack.len() <= TALLEST_STACK => {}
            Ok(false) => return Err(format!("at byte {at}: more than {TALLEST_STACK} values")),
            Ok(true) => return machine.result(),
            Err(problem) => return Err(format!("at byte {at}: {problem}")),
        }
    }
}

struct Machine<'a> {
    program: &'a [u8],
    position: usize,
    stack: Vec<Value>,
    /// The stack's heights at the marks not yet consumed.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    dictionaries: Vec<Vec<(Rc<str>, Value)>>,
}

impl<'a> Machine<'a> {
    /// Runs one instruction; true once the program has ended.
    fn step(&mut self) -> Result<bool, String> {
        match self.byte()? {
            // PROTO
            0x80 => match self.byte()? {
                2 => {}
                version => {
                    return Err(format!("uses pickle protocol {version}; torch.save uses 2"));
                }
            },
            // EMPTY_DICT, EMPTY_TUPLE, NONE, NEWTRUE, NEWFALSE
            b'}' => self.push_dictionary(),
            b')' => self.push_tuple(Vec::new())?,
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Integer(value.into()));
            }
            b'K' => {
                let value = self.byte()?;
                self.stack.push(Value::Integer(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Integer(value.into()));
            }
            0x8a => self.long()?,
            // BINUNICODE
            b'X' => {
                let length = u32::from_le_bytes(self.array()?) as usize;
                let text = self.text(length)?;
                self.stack.push(Value::Text(text.into()));
            }
            // GLOBAL
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let global = Global::parse(module, name)?;
                self.stack.push(Value::Global(global));
            }
            // BINPUT, LONG_BINPUT
            b'q' => {
                let index = self.byte()?.into();
                self.remember(index)?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index)?;
            }
            // BINGET, LONG_BINGET
            b'h' => {
                let index = self.byte()?.into();
                self.recall(index)?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index)?;
            }
            // MARK, TUPLE, TUPLE1, TUPLE2, TUPLE3
            b'(' => self.marks.push(self.stack.len()),
            b't' => {
                let items = self.since_mark()?;
                self.push_tuple(items)?;
            }
            count @ 0x85..=0x87 => {
                let first = self.height_below(usize::from(count - 0x84))?;
                let items = self.stack.split_off(first);
                self.push_tuple(items)?;
            }
            // BINPERSID
            b'Q' => {
                let storage = storage(&self.pop()?)?;
                self.stack.push(Value::Storage(storage));
            }
            // REDUCE
            b'R' => {
                let arguments = self.pop()?;
                let callee = self.pop()?;
                self.reduce(&callee, &arguments)?;
            }
            // BUILD: attributes of an OrderedDict (a module's metadata), which are not tensors.
            b'b' => {
                self.pop()?;
                self.top_dictionary()?;
            }
            // SETITEM, SETITEMS
            b's' => {
                let first = self.height_below(2)?;
                let items = self.stack.split_off(first);
                self.set_items(items)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set_items(items)?;
            }
            // STOP
            b'.' => return Ok(true),
            opcode => {
                return Err(format!(
                    "instruction {opcode:#04x} is not one that a dictionary of tensors needs"
                ));
            }
        }
        Ok(false)
    }

    /// The dictionary on top of the stack, which must hold nothing but tensors.
    fn result(&mut self) -> Result<Vec<(String, View)>, String> {
        let dictionary = self.top_dictionary()?;
        let entries = std::mem::take(&mut self.dictionaries[dictionary]);
        if entries.len() > MOST_TENSORS {
            let count = entries.len();
            return Err(format!("has {count} entries; {MOST_TENSORS} are the most"));
        }
        let mut names = HashSet::new();
        let mut views = Vec::with_capacity(entries.len());
        for (name, value) in entries {
            if !names.insert(Rc::clone(&name)) {
                return Err(format!("has two entries {name:?}"));
            }
            match value {
                Value::Tensor(view) => views.push((name.to_string(), View::clone(&view))),
                other => {
                    let kind = other.kind();
                    return Err(format!(
                        "entry {name:?} is {kind}; every entry must be a tensor"
                    ));
                }
            }
        }
        Ok(views)
    }

    fn reduce(&mut self, callee: &Value, arguments: &Value) -> Result<(), String> {
        let Value::Tuple(arguments, _) = arguments else {
            return Err(format!(
                "is given {}, not a tuple of arguments",
                arguments.kind()
            ));
        };
        match (callee, &arguments[..]) {
            (Value::Global(Global::OrderedDict), []) => self.push_dictionary(),
            // After the strides: requires_grad, hooks, and in newer files metadata.
            (
                Value::Global(Global::RebuildTensor),
                [Value::Storage(storage), offset, shape, strides, _, _]
                | [Value::Storage(storage), offset, shape, strides, _, _, _],
            ) => {
                let view = View {
                    storage: storage.clone(),
                    offset: offset.size("a tensor's offset")?,
                    shape: shape.sizes("a tensor's shape")?,
                    strides: strides.sizes("a tensor's strides")?,
                };
                if view.shape.len() != view.strides.len() {
                    let (shape, strides) = (&view.shape, &view.strides);
                    return Err(format!(
                        "shape {shape:?} and strides {strides:?} differ in length"
                    ));
                }
                self.stack.push(Value::Tensor(Rc::new(view)));
            }
            (Value::Global(Global::RebuildParameter), [Value::Tensor(view), _, _]) => {
                self.stack.push(Value::Tensor(Rc::clone(view)));
            }
            (Value::Global(global), _) => {
                let count = arguments.len();
                return Err(format!(
                    "calls {global:?} with {count} arguments that do not fit it"
                ));
            }
            (other, _) => return Err(format!("calls {}", other.kind())),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        let dictionary = self.top_dictionary()?;
        if !items.len().is_multiple_of(2) {
            return Err("a key has no value".to_owned());
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            let Value::Text(key) = key else {
                return Err(format!("a key is {}; it must be a text", key.kind()));
            };
            self.dictionaries[dictionary].push((key, value));
        }
        Ok(())
    }

    fn top_dictionary(&self) -> Result<usize, String> {
        match self.stack.last() {
            Some(Value::Dictionary(index)) => Ok(*index),
            Some(other) => Err(format!("found {} where a dictionary must be", other.kind())),
            None => Err("found nothing where a dictionary must be".to_owned()),
        }
    }

    fn push_dictionary(&mut self) {
        self.stack.push(Value::Dictionary(self.dictionaries.len()));
        self.dictionaries.push(Vec::new());
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Result<(), String> {
        let inner = items.iter().map(|item| match item {
            Value::Tuple(_, depth) => *depth,
            _ => 0,
        });
        let depth = inner.max().unwrap_or(0) + 1;
        if depth > DEEPEST_TUPLE {
            return Err(format!("tuples nest more than {DEEPEST_TUPLE} deep"));
        }
        self.stack.push(Value::Tuple(items.into(), depth));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.height_below(1)?;
        self.stack
            .pop()
            .ok_or_else(|| "the stack is empty".to_owned())
    }

    /// The stack's height without its top `count` values, which may not reach below the last mark.
    fn height_below(&self, count: usize) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let height = self.stack.len().checked_sub(count);
        height
            .filter(|&height| height >= floor)
            .ok_or_else(|| format!("needs {count} values on the stack; there are fewer"))
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("there is no mark on the stack")?;
        // `height_below` keeps the stack at or above every mark.
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let value = self.stack.last().ok_or("remembers from an empty stack")?;
        self.memo.insert(index, value.clone());
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let value = self.memo.get(&index);
        let value = value.ok_or_else(|| format!("recalls value {index}, which was never set"))?;
        self.stack.push(value.clone());
        Ok(())
    }

    /// LONG1: a length byte, then a little-endian two's complement integer.
    fn long(&mut self) -> Result<(), String> {
        let length = usize::from(self.byte()?);
        let bytes = self.bytes(length)?;
        if length > 8 {
            return Err(format!("has an integer of {length} bytes; 8 are the most"));
        }
        let negative = bytes.last().is_some_and(|&byte| byte & 0x80 != 0);
        let mut word = [if negative { 0xff } else { 0 }; 8];
        word[..length].copy_from_slice(bytes);
        self.stack.push(Value::Integer(i64::from_le_bytes(word)));
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes(N)?;
        bytes
            .try_into()
            .map_err(|_| "the program is cut off".to_owned())
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.position.checked_add(count);
        let bytes = end.and_then(|end| self.program.get(self.position..end));
        let bytes = bytes.ok_or("the program is cut off")?;
        self.position += count;
        Ok(bytes)
    }

    fn text(&mut self, length: usize) -> Result<&'a str, String> {
        if length > LONGEST_TEXT {
            return Err(format!(
                "has a text of {length} bytes; {LONGEST_TEXT} are the most"
            ));
        }
        std::str::from_utf8(self.bytes(length)?)
            .map_err(|_| "has a text that is no UTF-8".to_owned())
    }

    /// The text up to the next line feed.
    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.program[self.position..];
        let length = rest
            .iter()
            .take(LONGEST_TEXT)
            .position(|&byte| byte == b'\n');
        let length = length.ok_or("has a name without an end")?;
        self.position += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| "has a name that is no UTF-8".to_owned())
    }
}

/// The storage that a persistent id, `("storage", class, key, location, count)`, stands for.
fn storage(id: &Value) -> Result<Storage, String> {
    let Value::Tuple(items, _) = id else {
        return Err(format!("a storage is described by {}", id.kind()));
    };
    match &items[..] {
        [
            Value::Text(kind),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            count,
        ] if &**kind == "storage" && key.len() <= 20 && key.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Storage {
                key: Rc::clone(key),
                dtype: *dtype,
                count: count.size("a storage's size")?,
            })
        }
        _ => Err("a storage is not described as torch.save does it".to_owned()),
    }
}
