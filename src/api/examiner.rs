//! Examinations of pairs and of models: finding channels and directions and running features' tests takes gradients and
//! whole prompts at once, so they run beside the engine, on the weights that the engine runs too.
//!
//! Searches and looks have a lane each, so that a look never waits for a search. One examination of a lane runs at a
//! time; a bounded number wait for it. Each has a deadline, and ends when its client has gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::{HttpRequest, web};
use tokio::sync::Semaphore;

use super::ApiError;
use super::disconnect;
use crate::discovery::DiscoveryError;
use crate::discovery::patience::Patience;
use crate::discovery::question::PromptPair;
use crate::features::FeatureError;
use crate::features::pair::Pair;
use crate::models::model::LoadedModel;
use crate::serving::snapshot::{ModelCard, ServedPair};
use crate::settings::Limits;

/// Lets examinations wait for their turn.
#[derive(Debug)]
pub struct Examiner {
    looks: Lane,
    searches: Lane,
    /// `limits.max_examinations`.
    most: usize,
    /// `limits.examination_seconds`.
    seconds: u64,
}

/// What an examination takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// A pass over reference text at most.
    Look,
    /// Many passes over what a request says.
    Search,
}

/// Examinations that run one after the other.
#[derive(Debug)]
struct Lane {
    /// One for each examination that waits or runs.
    places: Semaphore,
    /// Held until an examination has really ended, also where nobody waits for it any more.
    turn: Arc<Semaphore>,
}

impl Lane {
    fn new(most: usize) -> Self {
        Lane {
            places: Semaphore::new(most),
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Ends the examination when the handler that waits for it ends.
struct Waiting(Patience);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lose();
    }
}

impl Examiner {
    pub fn new(limits: &Limits) -> Self {
        let most = limits.max_examinations;
        Examiner {
            looks: Lane::new(most),
            searches: Lane::new(most),
            most,
            seconds: limits.examination_seconds,
        }
    }

    /// Does `work` on a bridge's pair for the client of `http`, off the threads that serve. What the work refuses is
    /// told of the request's field `param`.
    pub async fn examine<T, W>(
        &self,
        http: &HttpRequest,
        effort: Effort,
        bridge: &ServedPair,
        param: &str,
        work: W,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(&Pair, &Patience) -> Result<T, DiscoveryError> + Send + 'static,
    {
        let pair = bridge.pair().await?;
        let examined = self.carry_out(http, effort, move |patience| work(&pair, patience));
        examined.await?.map_err(|error| refusal(error, param))
    }

    /// The same on one model.
    pub async fn examine_model<T, W>(
        &self,
        http: &HttpRequest,
        effort: Effort,
        card: &ModelCard,
        param: &str,
        work: W,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(&LoadedModel, &Patience) -> Result<T, DiscoveryError> + Send + 'static,
    {
        let model = card.model().await?;
        let examined = self.carry_out(http, effort, move |patience| work(&model, patience));
        examined.await?.map_err(|error| refusal(error, param))
    }

    /// Does `work` when its turn comes; it is given up at its deadline and when the client of `http` has gone.
    async fn carry_out<T, W>(
        &self,
        http: &HttpRequest,
        effort: Effort,
        work: W,
    ) -> Result<Result<T, DiscoveryError>, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(&Patience) -> Result<T, DiscoveryError> + Send + 'static,
    {
        let until = Instant::now() + Duration::from_secs(self.seconds);
        let patience = Patience::until(until);
        let _waiting = Waiting(patience.clone());
        let overdue = ApiError::ExaminationDeadline {
            seconds: self.seconds,
        };
        let examined = tokio::select! {
            examined = tokio::time::timeout_at(until.into(), self.in_turn(effort, patience, work)) => examined,
            () = disconnect::gone(http) => return Err(ApiError::ClientGone),
        };
        match examined {
            Ok(Ok(Err(DiscoveryError::GivenUp))) | Err(_) => Err(overdue),
            Ok(examined) => examined,
        }
    }

    async fn in_turn<T, W>(
        &self,
        effort: Effort,
        patience: Patience,
        work: W,
    ) -> Result<Result<T, DiscoveryError>, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(&Patience) -> Result<T, DiscoveryError> + Send + 'static,
    {
        let lane = match effort {
            Effort::Look => &self.looks,
            Effort::Search => &self.searches,
        };
        let Ok(_place) = lane.places.try_acquire() else {
            return Err(ApiError::Examinations { most: self.most });
        };
        let turn = lane.turn.clone().acquire_owned().await;
        let turn = turn.map_err(ApiError::internal)?;
        let examined = web::block(move || {
            let _turn = turn;
            patience.check()?;
            work(&patience)
        });
        let ended = |_| ApiError::Internal("an examination ended early".to_owned());
        examined.await.map_err(ended)
    }
}

fn refusal(error: DiscoveryError, param: &str) -> ApiError {
    match error {
        DiscoveryError::Invalid(_)
        | DiscoveryError::Feature(FeatureError::Invalid(_))
        | DiscoveryError::NotCarried(_)
        | DiscoveryError::Location(_)
        | DiscoveryError::Tokenizer(_) => ApiError::invalid(param, error.to_string()),
        DiscoveryError::Compute(_)
        | DiscoveryError::Feature(FeatureError::Compute(_))
        | DiscoveryError::Pair(_)
        | DiscoveryError::GivenUp => ApiError::internal(error),
    }
}

/// Refuses pairs whose prompts are longer than either model's context.
pub fn check_length(pairs: &[PromptPair], models: &Pair) -> Result<(), DiscoveryError> {
    let context = models
        .dense
        .config
        .context_length
        .min(models.sparse.config.context_length);
    let long = |pair: &PromptPair| pair.presented.len().max(pair.counterfactual.len()) > context;
    match pairs.iter().position(long) {
        None => Ok(()),
        Some(index) => {
            let problem = format!(
                "the prompts of pair {index} are longer than the context of {context} tokens"
            );
            Err(DiscoveryError::Invalid(problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use actix_web::test::TestRequest;

    use super::*;

    /// A guard against tests that never end, not a measure of time.
    const FOREVER: Duration = Duration::from_secs(60);

    fn examiner(most: usize, seconds: u64) -> Examiner {
        let limits = Limits {
            max_examinations: most,
            examination_seconds: seconds,
            ..Limits::default()
        };
        Examiner::new(&limits)
    }

    /// An examination that ends only when it is given up: it says when it begins and when it ends.
    fn endless(
        told: mpsc::Sender<&'static str>,
    ) -> impl FnOnce(&Patience) -> Result<(), DiscoveryError> + Send + 'static {
        move |patience| {
            let _ = told.send("begun");
            while patience.check().is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = told.send("ended");
            patience.check()
        }
    }

    async fn hear(told: &mpsc::Receiver<&'static str>, expected: &str) {
        let heard = async {
            loop {
                match told.try_recv() {
                    Ok(word) => return word,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let heard = tokio::time::timeout(FOREVER, heard).await;
        assert_eq!(heard, Ok(expected));
    }

    #[actix_web::test]
    async fn a_look_does_not_wait_for_a_search() {
        let examiner = examiner(2, 600);
        let http = TestRequest::default().to_http_request();
        let (tell, told) = mpsc::channel();
        let search = examiner.carry_out(&http, Effort::Search, endless(tell));
        let look = async {
            hear(&told, "begun").await;
            let look = examiner.carry_out(&http, Effort::Look, |_| Ok(7));
            tokio::time::timeout(FOREVER, look).await
        };
        tokio::select! {
            _ = search => panic!("nobody gave it up"),
            look = look => assert!(matches!(look, Ok(Ok(Ok(7))))),
        }
        // The search is dropped here, as it is when its client goes.
        hear(&told, "ended").await;
    }

    #[actix_web::test]
    async fn more_than_may_wait_are_turned_away_and_places_come_back() {
        let examiner = examiner(2, 600);
        let http = TestRequest::default().to_http_request();
        let (tell, told) = mpsc::channel();
        let running = examiner.carry_out(&http, Effort::Search, endless(tell.clone()));
        let waiting = examiner.carry_out(&http, Effort::Search, endless(tell));
        let third = async {
            hear(&told, "begun").await;
            examiner.carry_out(&http, Effort::Search, |_| Ok(())).await
        };
        tokio::select! {
            biased;
            _ = running => panic!("nobody gave it up"),
            _ = waiting => panic!("nobody gave it up"),
            third = third => {
                assert!(matches!(third, Err(ApiError::Examinations { most: 2 })));
            }
        }
        hear(&told, "ended").await;
        // The one that waited has left before it began.
        let next = examiner.carry_out(&http, Effort::Search, |_| Ok(7));
        let next = tokio::time::timeout(FOREVER, next).await;
        assert!(matches!(next, Ok(Ok(Ok(7)))));
    }

    #[actix_web::test]
    async fn an_examination_ends_at_its_deadline_and_so_does_one_that_waits() {
        let examiner = examiner(2, 1);
        let http = TestRequest::default().to_http_request();
        let (tell, told) = mpsc::channel();
        let (first, second) = tokio::join!(
            examiner.carry_out(&http, Effort::Search, endless(tell.clone())),
            examiner.carry_out(&http, Effort::Search, endless(tell)),
        );
        for outcome in [first, second] {
            let overdue = ApiError::ExaminationDeadline { seconds: 1 };
            assert_eq!(outcome.expect_err("late").to_string(), overdue.to_string());
        }
        hear(&told, "begun").await;
        hear(&told, "ended").await;
        assert!(told.try_recv().is_err(), "the second was never begun");
    }
}
