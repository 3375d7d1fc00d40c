//! `limits` of the settings: what one request, one client and one model may take of memory and time. Whoever
//! asks for more is refused with the limit's name, before anything is allocated.

use serde::{Deserialize, Serialize};

/// What one request may ask for. All are checked before anything is allocated for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Prompts in one request.
    pub max_prompts: usize,
    /// Characters of all prompts of one request, counterfactual ones included.
    pub max_prompt_characters: usize,
    /// Requests whose texts are tokenised at a time; each takes some 600 bytes a character of its longest prompt.
    pub max_tokenisations: usize,
    /// Memory that a chat template may take, in MiB, in a process of its own.
    pub template_mib: u64,
    /// Seconds that a chat template may take for one conversation.
    pub template_seconds: u64,
    /// Completions of one request: prompts x samples x arms.
    pub max_choices: usize,
    /// Completions x `max_tokens`.
    pub max_generated_tokens: usize,
    /// Numbers in one answer with activations or logits.
    pub max_activation_values: usize,
    /// Bytes that the log-probabilities, receipts, activations and control arms of one completion may take.
    pub max_answer_bytes: usize,
    /// Memory that a model may take, in MiB: its weights and the key-value cache of one sequence together.
    pub max_model_mib: u64,
    /// Seconds that a pair or a model may take to be tried, in a process of its own, before it is served.
    pub load_seconds: u64,
    /// Memory that the weights of what came from the library and of jobs' results may take together, in MiB: they are read
    /// when they are asked for, and those that were asked for longest ago make room for others.
    #[serde(alias = "max_results_mib")]
    pub max_weights_mib: u64,
    /// Seconds after which such weights are dropped that nobody asks for.
    #[serde(alias = "result_idle_seconds")]
    pub weights_idle_seconds: u64,
    /// Bytes of long request bodies that are being read, parsed and checked, of all clients together.
    pub max_unparsed_bytes: usize,
    /// Bytes of long answers that their clients have not read yet, of all clients together.
    pub max_unsent_bytes: usize,
    /// Seconds that a request's body may take to arrive, and that a part of an upload may.
    pub body_seconds: u64,
    /// Seconds after which a connection is closed whose client reads nothing of its answer.
    pub unread_seconds: u64,
    /// Examinations of features (contrasts and verifications; looks apart from them) that may wait or run at once.
    pub max_examinations: usize,
    /// Seconds that one may take, waiting included.
    pub examination_seconds: u64,
    /// Features that callers have made or changed, of all bridges together.
    pub max_features: usize,
    /// Tests of one feature.
    pub max_feature_tests: usize,
    /// Bytes that those features take on the disk, of all bridges together.
    pub max_feature_bytes: usize,
    /// Presets, of all models together.
    pub max_presets: usize,
    /// Bytes that they take on the disk, of all models together.
    pub max_preset_bytes: usize,
    /// Tasks that callers have brought.
    pub max_tasks: usize,
    /// Bytes that they take on the disk.
    pub max_task_bytes: usize,
    /// Directions that callers have registered, of all models together.
    pub max_directions: usize,
    /// Bytes that those take on the disk.
    pub max_direction_bytes: usize,
    /// Seconds that a completion may take, waiting included.
    pub deadline_seconds: u64,
    /// Seconds that its first token may take, waiting included: a request that would wait longer is turned away.
    pub first_token_seconds: u64,
}

impl Limits {
    /// The most that `max_feature_bytes` may be: a longer file of features is not read.
    pub const LARGEST_FEATURE_BYTES: usize = 1 << 30;

    /// The most that `max_direction_bytes` may be: a longer file of one direction is not read.
    pub const LARGEST_DIRECTION_BYTES: usize = 1 << 30;

    /// [`Limits::max_model_mib`] in bytes.
    pub fn max_model_bytes(&self) -> u64 {
        self.max_model_mib.saturating_mul(1 << 20)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_body_bytes: 4 << 20,
            max_prompts: 256,
            max_prompt_characters: 1 << 19,
            max_tokenisations: 2,
            template_mib: 128,
            template_seconds: 10,
            max_choices: 512,
            max_generated_tokens: 1 << 17,
            max_activation_values: 1 << 21,
            max_answer_bytes: 64 << 20,
            max_model_mib: 4096,
            load_seconds: 120,
            max_weights_mib: 4096,
            weights_idle_seconds: 600,
            max_unparsed_bytes: 64 << 20,
            max_unsent_bytes: 64 << 20,
            body_seconds: 30,
            unread_seconds: 30,
            max_examinations: 16,
            examination_seconds: 300,
            max_features: 10_000,
            max_feature_tests: 100,
            max_feature_bytes: 16 << 20,
            max_presets: 256,
            max_preset_bytes: 16 << 20,
            max_tasks: 64,
            max_task_bytes: 16 << 20,
            max_directions: 1000,
            max_direction_bytes: 64 << 20,
            deadline_seconds: 300,
            first_token_seconds: 30,
        }
    }
}
