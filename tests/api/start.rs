//! The state of a server over the tiny pair.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use causeway::api::backend::{Answer, Backend};
use causeway::api::feature_store::{FeatureStore, read_features};
use causeway::api::inventory::Inventory;
use causeway::api::state::State;
use causeway::bridge::pair::PairFiles;
use causeway::features::registry::Feature;
use causeway::generation::request::{
    Activations, ActivationsRequest, Choice, Finish, Generation, GenerationRequest, Token,
};
use causeway::models::location::Place;
use causeway::models::tokenizer::Tokenizer;
use causeway::settings::Settings;

pub fn state(settings: &Settings, address: SocketAddr, pair: &Path) -> State {
    let files = PairFiles::read(pair).unwrap();
    let record = files.record.clone();
    let mut inventory = Inventory::default();
    inventory.add_model(&record.dense, &files.dense, &pair.join("dense")).unwrap();
    inventory.add_model(&record.sparse, &files.sparse, &pair.join("sparse")).unwrap();
    inventory.add_bridge(record, pair).unwrap();
    let shipped = read_features(&pair.join("features.json")).unwrap();
    let features = FeatureStore::open(&settings.data_dir, BTreeMap::from([("tiny".to_owned(), shipped)])).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_bytes(files.dense.tokenizer.as_deref().unwrap()).unwrap());
    State::new(settings, address, Box::new(Fake { tokenizer }), inventory, features).unwrap()
}

struct Fake {
    tokenizer: Arc<Tokenizer>,
}

impl Backend for Fake {
    fn generate(&self, request: GenerationRequest) -> Answer<Generation> {
        let tokenizer = self.tokenizer.clone();
        Box::pin(async move {
            let mut choices = Vec::new();
            let token = |id: u32, logprob| Token { id, logprob, top: Vec::new() };
            let logprob = |value: f32| request.logprobs.map(|_| value);
            for prompt in &request.prompts {
                for sample in 0..request.n {
                    let seed = request.sampling.seed.unwrap_or(1) as u32 * 31 + sample as u32 * 7;
                    let seed = if request.sampling.temperature == 0.0 { 0 } else { seed };
                    let mut ids: Vec<u32> =
                        (0..request.max_tokens as u32).map(|step| 33 + (seed + step * 13) % 60).collect();
                    let mut text = tokenizer.decode(&ids);
                    let mut finish = Finish::Length;
                    if let Some(at) = request.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
                        text.truncate(at);
                        ids.truncate(at);
                        finish = Finish::Stop;
                    }
                    choices.push(Choice {
                        text,
                        tokens: ids.iter().map(|&id| token(id, logprob(-1.0 - (sample as f32 - 2.0).abs()))).collect(),
                        prompt: match request.echo {
                            true => prompt
                                .iter()
                                .enumerate()
                                .map(|(index, &id)| token(id, logprob(-2.0).filter(|_| index > 0)))
                                .collect(),
                            false => Vec::new(),
                        },
                        finish,
                        variant: None,
                        strength: None,
                        receipt: None,
                        activations: None,
                    });
                }
            }
            let completion_tokens = choices.iter().map(|choice| choice.tokens.len()).sum();
            let prompt_tokens = request.prompts.iter().map(Vec::len).sum();
            Ok(Generation { choices, prompt_tokens, completion_tokens })
        })
    }

    fn activations(&self, request: ActivationsRequest) -> Answer<Activations> {
        Box::pin(async move {
            let count = request.tokens.len();
            let place = |name: String| {
                let width = if name.contains("mlp.post_act") { 128 } else { 32 };
                assert!(Place::parse(&name, 2).is_ok());
                (name, width, (0..count * width).map(|index| (index as f32 * 0.7).sin()).collect())
            };
            Ok(Activations {
                places: request.places.into_iter().map(place).collect(),
                logits: request.logits.then(|| vec![vec![0.5; 320]; count]),
            })
        })
    }

    fn ping(&self) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }

    fn set_features(&self, _: &str, _: Vec<Feature>) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }
}
