//! The engine: one thread that owns everything loaded, and handles that send it commands.
//!
//! Commands wait in a bounded queue and are carried out one after another; each carries a channel for its
//! answer. A command whose caller has gone is skipped, or given up at its next step. A panic fails its own
//! command and nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::activations::activations;
use super::catalog::Catalog;
use super::request::{
    Activations, ActivationsRequest, Delta, EngineError, Generation, GenerationRequest,
};
use super::session::{Observer, generate};

/// Commands that may wait; callers beyond them wait to send theirs.
const QUEUE: usize = 256;

/// Something to do with the catalog. It answers for itself and minds its own caller.
type Command = Box<dyn FnOnce(&mut Catalog) + Send>;

/// Starts and stops the engine's thread.
pub struct Engine;

/// Sends commands to the engine. The engine stops when its last handle is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// None once the engine is told to stop.
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread that owns `catalog`.
    pub fn start(catalog: Catalog) -> std::io::Result<EngineHandle> {
        let (sender, mut receiver) = mpsc::channel::<Command>(QUEUE);
        let serve = move || {
            let mut catalog = catalog;
            while let Some(command) = receiver.blocking_recv() {
                command(&mut catalog);
            }
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(serve)?;
        let shared = Shared {
            commands: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
        };
        Ok(EngineHandle {
            shared: Arc::new(shared),
        })
    }
}

impl EngineHandle {
    /// Completes prompts.
    pub async fn generate(&self, request: GenerationRequest) -> Result<Generation, EngineError> {
        self.generate_observed(request, None).await
    }

    /// The same, with every piece sent to `pieces` as soon as it is certain. A receiver that is dropped gives
    /// the request up.
    pub async fn generate_streaming(
        &self,
        request: GenerationRequest,
        pieces: mpsc::UnboundedSender<Delta>,
    ) -> Result<Generation, EngineError> {
        self.generate_observed(request, Some(pieces)).await
    }

    async fn generate_observed(
        &self,
        request: GenerationRequest,
        pieces: Option<mpsc::UnboundedSender<Delta>>,
    ) -> Result<Generation, EngineError> {
        self.ask(move |catalog, reply| {
            let mut caller = Caller { reply, pieces };
            generate(catalog, &request, &mut caller)
        })
        .await
    }

    /// Reads values inside a model.
    pub async fn activations(
        &self,
        request: ActivationsRequest,
    ) -> Result<Activations, EngineError> {
        self.ask(move |catalog, _| activations(catalog, &request))
            .await
    }

    /// Returns once the engine has come to this command.
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.ask(|_, _| Ok(())).await
    }

    /// Does something with what is loaded. The closure runs on the engine's thread, between requests; a panic
    /// in it comes back as an error.
    pub async fn with_catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Catalog) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        self.ask(move |catalog, _| Ok(work(catalog))).await
    }

    /// Stops taking commands, lets those that wait finish, and waits for the thread.
    pub fn shutdown(&self) {
        self.shared.stop();
    }

    /// Sends a command and waits for its answer; `work` sees whether its caller still waits.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Catalog, Waiting) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (sender, receiver) = oneshot::channel();
        // Dropped with this future, whether it is finished or given up.
        let (alive, waiting) = oneshot::channel::<()>();
        let command: Command = Box::new(move |catalog| {
            if sender.is_closed() {
                return;
            }
            let work = AssertUnwindSafe(|| work(catalog, Waiting(alive)));
            let answer = catch_unwind(work)
                .unwrap_or_else(|panic| Err(EngineError::Failed(message(&*panic))));
            // The caller may have gone meanwhile.
            let _ = sender.send(answer);
        });
        let commands = self.shared.sender().ok_or(EngineError::Stopped)?;
        commands
            .send(command)
            .await
            .map_err(|_| EngineError::Stopped)?;
        let answer = receiver.await.map_err(|_| EngineError::Stopped)?;
        drop(waiting);
        answer
    }
}

/// Whether the caller of a command still waits for it.
struct Waiting(oneshot::Sender<()>);

/// The caller of a generation.
struct Caller {
    reply: Waiting,
    pieces: Option<mpsc::UnboundedSender<Delta>>,
}

impl Observer for Caller {
    fn more(&mut self, delta: Delta) -> bool {
        self.pieces
            .as_ref()
            .is_none_or(|pieces| pieces.send(delta).is_ok())
    }

    fn waits(&self) -> bool {
        !self.reply.0.is_closed()
    }
}

impl Shared {
    fn sender(&self) -> Option<mpsc::Sender<Command>> {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn stop(&self) {
        drop(
            self.commands
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            // A command that drops the last handle runs on the thread itself.
            && thread.thread().id() != std::thread::current().id()
        {
            // Commands cannot panic it, and there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("without a message"))
}
