//! Counterfactual prompts: the second streams that patches take their values from.

use super::scene::{PlanError, Scene, refused};
use crate::interventions::request::{Align, Counterfactual, CounterfactualPrompt};

/// Which model runs a counterfactual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamModel {
    /// The unedited sparse model.
    Sparse,
    /// The unsteered dense model.
    Dense,
}

/// A counterfactual prompt for every prompt of the request, each followed by the tokens that are generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    pub model: StreamModel,
    pub prompts: Vec<Vec<u32>>,
}

impl Stream {
    /// The token of the counterfactual stream that stands beside `position` of its arm.
    pub fn partner(&self, prompt: usize, prompt_length: usize, position: usize) -> Option<usize> {
        (position + self.prompts[prompt].len()).checked_sub(prompt_length)
    }

    /// How many of its tokens stand before the one beside `position`; none before the first of a longer prompt.
    pub fn before(&self, prompt: usize, prompt_length: usize, position: usize) -> usize {
        let partner = self.partner(prompt, prompt_length, position);
        partner.unwrap_or(0)
    }
}

/// Tokenises and checks a patch's counterfactual; `param` is the path of `to`.
pub fn stream(
    to: &Counterfactual,
    prompt: &CounterfactualPrompt,
    model: StreamModel,
    scene: &Scene,
    param: &str,
) -> Result<Stream, PlanError> {
    let param = format!("{param}.prompt");
    let encode = |text: &String| {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        scene
            .tokenizer
            .encode_prompt(text)
            .map_err(|error| refused(error.to_string(), &param))
    };
    let count = scene.prompts.len();
    // One is held against the models before there is any prompt.
    let one_for_all = |counterfactual: Vec<u32>| {
        check_tokens(&counterfactual, 0, scene, &param)?;
        Ok::<_, PlanError>(vec![counterfactual; count])
    };
    let prompts = match prompt {
        CounterfactualPrompt::Text(text) => one_for_all(encode(text)?)?,
        CounterfactualPrompt::Tokens(tokens) => one_for_all(tokens.clone())?,
        CounterfactualPrompt::Texts(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
        CounterfactualPrompt::TokenLists(lists) => lists.clone(),
    };
    if prompts.len() != count {
        let message = format!(
            "there are {} counterfactual prompts for {count} prompts",
            prompts.len()
        );
        return Err(refused(message, &param));
    }
    for (index, (counterfactual, prompt)) in prompts.iter().zip(scene.prompts).enumerate() {
        check_tokens(counterfactual, index, scene, &param)?;
        let (found, expected) = (counterfactual.len(), prompt.len());
        if to.align != Some(Align::End) && found != expected {
            let message = format!(
                "prompt {index} has {expected} tokens, its counterfactual {found}; they must agree, or \
                 `\"align\": \"end\"` pairs them from the end"
            );
            return Err(refused(message, &param));
        }
    }
    Ok(Stream { model, prompts })
}

/// Refuses the counterfactual of prompt number `index` where the models cannot run it.
fn check_tokens(tokens: &[u32], index: usize, scene: &Scene, param: &str) -> Result<(), PlanError> {
    if tokens.is_empty() {
        let message = format!("the counterfactual of prompt {index} is empty");
        return Err(refused(message, param));
    }
    let vocabulary = scene.model.config.vocab_size;
    if let Some(id) = tokens.iter().find(|id| **id as usize >= vocabulary) {
        let message = format!("token id {id} is outside the vocabulary");
        return Err(refused(message, param));
    }
    let (found, limit) = (tokens.len(), scene.context_length());
    if found > limit {
        let message = format!(
            "the counterfactual of prompt {index} has {found} tokens; the context holds {limit}"
        );
        return Err(refused(message, param));
    }
    Ok(())
}
