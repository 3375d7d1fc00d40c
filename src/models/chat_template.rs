//! Chat templates: how a model wants a conversation written out as one text.
//!
//! A template is Jinja as Hugging Face runs it, found in a model's directory: the file `chat_template.jinja`, or
//! else `chat_template` in `tokenizer_config.json`, one text or a list of named ones of which `default` is taken.
//! The same file names the texts of the tokens that begin and end a sequence.
//!
//! A template comes with a model, from whoever made it. It reads no files, its work is counted in fuel, and its text is
//! cut off at a limit; but what it nests and what some of its functions make is bounded by nothing here. A server
//! therefore neither parses nor runs a template itself: processes of their own do.

use std::io;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::artifacts::{ArtifactError, atomic};

const TEMPLATE_FILE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const LONGEST_TEMPLATE: u64 = 1 << 20;
/// It may list a whole vocabulary of added tokens.
const LONGEST_TOKENIZER_CONFIG: u64 = 64 << 20;
/// Instructions of one rendering; a unit of fuel also pays for 64 bytes.
const FUEL: u64 = 1 << 20;
/// Templates nest macros and loops a few levels deep.
const DEEPEST_RECURSION: usize = 100;
/// Bytes that one `tojson` may write.
const LONGEST_JSON: usize = 4 << 20;
/// What errors call the template.
const NAME: &str = "chat_template";

/// Why a conversation could not be written out.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum RenderError {
    #[error("the model's chat template is no Jinja that can be run: {0}")]
    Syntax(String),
    /// In the template's own words.
    #[error("the model's chat template does not take these messages: {0}")]
    Raised(String),
    #[error("the model's chat template failed: {0}")]
    Failed(String),
    #[error(
        "the model's chat template did not come to an end in the {FUEL} steps that it is given"
    )]
    OutOfFuel,
    #[error(
        "the messages are longer than the {limit} characters that are taken, once the chat template has written \
         them out"
    )]
    TooLong { limit: usize },
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// What somebody says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A model's chat template, as it stands in the model's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatTemplate {
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// A conversation to be written out in at most so many characters.
#[derive(Debug, Serialize, Deserialize)]
pub struct Conversation {
    pub template: ChatTemplate,
    pub messages: Vec<Message>,
    pub limit: usize,
}

/// What is read of `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    bos_token: Option<TokenField>,
    eos_token: Option<TokenField>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenField {
    Text(String),
    Token { content: String },
}

impl TokenField {
    fn into_text(self) -> String {
        match self {
            TokenField::Text(text) | TokenField::Token { content: text } => text,
        }
    }
}

impl TemplateField {
    /// The only template, or the one named `default`.
    fn into_default(self) -> Option<String> {
        match self {
            TemplateField::One(source) => Some(source),
            TemplateField::Several(templates) => templates
                .into_iter()
                .find(|template| template.name == "default")
                .map(|template| template.template),
        }
    }
}

impl ChatTemplate {
    /// The template of the model in `directory`, if it has one.
    pub fn read(directory: &Path) -> Result<Option<Self>, ArtifactError> {
        let config_path = directory.join(TOKENIZER_CONFIG_FILE);
        let config = match config_path.is_file() {
            true => {
                let json = atomic::read_small(&config_path, LONGEST_TOKENIZER_CONFIG)?;
                serde_json::from_slice(&json).map_err(|error| {
                    ArtifactError::damaged(&config_path, "the configuration", error.to_string())
                })?
            }
            false => TokenizerConfig::default(),
        };
        let template_path = directory.join(TEMPLATE_FILE);
        let source = match template_path.is_file() {
            true => {
                let bytes = atomic::read_small(&template_path, LONGEST_TEMPLATE)?;
                let source = String::from_utf8(bytes).map_err(|error| {
                    ArtifactError::damaged(&template_path, "the template", error.to_string())
                })?;
                Some(source)
            }
            false => config.chat_template.and_then(TemplateField::into_default),
        };
        let text = |token: Option<TokenField>| token.map(TokenField::into_text);
        let (bos_token, eos_token) = (text(config.bos_token), text(config.eos_token));
        Ok(source.map(|source| Self::new(source, bos_token, eos_token)))
    }

    /// A template from its text, with the texts of the tokens that begin and end a sequence.
    pub fn new(source: String, bos_token: Option<String>, eos_token: Option<String>) -> Self {
        ChatTemplate {
            source,
            bos_token,
            eos_token,
        }
    }

    /// Whether the template can be parsed. Only for a process of its own: what is nested too deep overflows its stack.
    pub fn check(&self) -> Result<(), RenderError> {
        let environment = self.environment();
        let checked = environment.map(drop);
        checked.map_err(|error| RenderError::Syntax(error.to_string()))
    }

    fn environment(&self) -> Result<Environment<'_>, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEEPEST_RECURSION);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template(NAME, &self.source)?;
        Ok(environment)
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the model ends a turn with.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// The text of a conversation up to where the assistant's next words begin; at most `limit` characters. Only for a
    /// process of its own.
    pub fn render(&self, messages: &[Message], limit: usize) -> Result<String, RenderError> {
        let environment = self
            .environment()
            .map_err(|error| RenderError::Syntax(error.to_string()))?;
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.bos_token.as_deref().map_or(Value::UNDEFINED, Value::from),
            eos_token => self.eos_token.as_deref().map_or(Value::UNDEFINED, Value::from),
        };
        let mut text = BoundedText::new(limit);
        let rendered = environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut text).map(drop));
        if text.is_full {
            return Err(RenderError::TooLong { limit });
        }
        rendered.map_err(render_error)?;
        String::from_utf8(text.bytes).map_err(|error| RenderError::Failed(error.to_string()))
    }
}

fn render_error(error: minijinja::Error) -> RenderError {
    let raised =
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Raised>());
    match (raised, error.kind()) {
        (Some(Raised(message)), _) => RenderError::Raised(message.clone()),
        (None, ErrorKind::OutOfFuel) => RenderError::OutOfFuel,
        (None, _) => RenderError::Failed(error.to_string()),
    }
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

/// JSON as Python's `json.dumps` writes it, which models have seen: a space after `,` and `:`, nothing escaped for
/// HTML.
fn tojson(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    match indent {
        Some(width) => {
            let indent = vec![b' '; width.min(16)];
            written(&value, PrettyFormatter::with_indent(&indent))
        }
        None => written(&value, SpacedFormatter),
    }
}

fn written(value: &Value, formatter: impl Formatter) -> Result<String, minijinja::Error> {
    let failed = |problem: String| minijinja::Error::new(ErrorKind::BadSerialization, problem);
    let mut text = BoundedText::new(LONGEST_JSON);
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|error| failed(error.to_string()))?;
    String::from_utf8(text.bytes).map_err(|error| failed(error.to_string()))
}

/// `{"a": 1, "b": [1, 2]}`.
struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn separate<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
    match first {
        true => Ok(()),
        false => writer.write_all(b", "),
    }
}

/// Text that takes so many characters and then no more.
struct BoundedText {
    bytes: Vec<u8>,
    room: usize,
    is_full: bool,
}

impl BoundedText {
    fn new(limit: usize) -> Self {
        BoundedText {
            bytes: Vec::new(),
            room: limit,
            is_full: false,
        }
    }
}

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // In UTF-8 every byte but these begins a character.
        let continues = |byte: &&u8| (0x80..0xc0).contains(*byte);
        let characters = bytes.len() - bytes.iter().filter(continues).count();
        let Some(room) = self.room.checked_sub(characters) else {
            self.is_full = true;
            return Err(io::Error::other("the text is longer than it may be"));
        };
        self.room = room;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, content: &str) -> Message {
        Message {
            role,
            content: content.to_owned(),
            name: None,
        }
    }

    fn rendered(source: &str, messages: &[Message]) -> Result<String, RenderError> {
        let (bos, eos) = (Some("<s>".to_owned()), Some("</s>".to_owned()));
        let template = ChatTemplate::new(source.to_owned(), bos, eos);
        template.render(messages, 1000)
    }

    #[test]
    fn a_template_is_run_as_hugging_face_runs_it() {
        // Blocks take their line's indentation and newline with them; strings have Python's methods.
        let source = "{{ bos_token }}
            {%- for message in messages %}
    {% if message['role'] == 'user' %}
[U] {{ message.content.strip() }}
    {% elif message.role == 'assistant' %}
[A] {{ message['content'].split('|')[-1] }}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}[A]{% endif %}{{ tools is defined }}
";
        let messages = [
            message(Role::User, "  <b> & 'c' "),
            message(Role::Assistant, "thought|said"),
        ];
        let text = rendered(source, &messages).expect("a text");
        assert_eq!(text, "<s>[U] <b> & 'c'\n[A] said</s>\n[A]False");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let message = Message {
            name: Some("Zo\u{eb} <3".to_owned()),
            ..message(Role::User, "\"x\"\n")
        };
        let json = rendered("{{ messages | tojson }}", std::slice::from_ref(&message));
        let expected =
            "[{\"role\": \"user\", \"content\": \"\\\"x\\\"\\n\", \"name\": \"Zo\u{eb} <3\"}]";
        assert_eq!(json.expect("a text"), expected);
        let json = rendered("{{ [1, {'a': 2}] | tojson(indent=2) }}", &[]);
        assert_eq!(json.expect("a text"), "[\n  1,\n  {\n    \"a\": 2\n  }\n]");
    }

    #[test]
    fn what_goes_wrong_is_told_apart() {
        let fails = |source: &str| rendered(source, &[message(Role::User, "x")]).expect_err(source);
        let raised = fails("{{ raise_exception('roles must alternate') }}");
        assert!(matches!(raised, RenderError::Raised(text) if text == "roles must alternate"));
        for failing in [
            "{{ nothing.at_all }}",
            "{{ messages | nosuchfilter }}",
            "{{ 1 / 0 }}",
        ] {
            assert!(
                matches!(fails(failing), RenderError::Failed(_)),
                "{failing}"
            );
        }
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        let endless = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        let doubling = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}\
             {% endfor %}";
        assert!(matches!(fails(nested), RenderError::OutOfFuel));
        assert!(matches!(fails(endless), RenderError::Failed(_)));
        assert!(matches!(fails(doubling), RenderError::OutOfFuel));
        let shared = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
             {% endfor %}{{ ns.x | tojson }}";
        assert!(matches!(fails(shared), RenderError::Failed(_)));
        let long = "{% for i in range(9999) %}\u{e9}{% endfor %}";
        assert!(matches!(fails(long), RenderError::TooLong { limit: 1000 }));
        let exact = rendered("{% for i in range(1000) %}\u{e9}{% endfor %}", &[]);
        assert_eq!(exact.expect("a text").chars().count(), 1000);
    }
}
