//! One address of the API: its path, and for each method who may use it and which handler answers.
//!
//! A route can only be made here, and only together with its [`Access`]; the table of all of them is
//! [`server::addresses`](super::server::addresses). So no address is reachable by a key that was not meant for it:
//! whether a request is let in is decided by the route that answers it, however its path was written.

use actix_web::dev::ServiceRequest;
use actix_web::middleware::{Next, from_fn};
use actix_web::{
    FromRequest, Handler, HttpMessage, HttpResponse, Resource, Responder, ResponseError, Route, web,
};

use super::ApiError;
use super::keys::Access;
use super::state::State;

/// An address before it is given to the HTTP library.
pub struct Address {
    path: &'static str,
    routes: Vec<(&'static str, Access, Route)>,
}

/// On a request that was let in: the name of its key.
#[derive(Debug, Clone)]
pub struct Caller(pub String);

/// An address with no methods yet. `path` is a pattern such as `/v1/models/{id}`.
pub fn at(path: &'static str) -> Address {
    Address {
        path,
        routes: Vec::new(),
    }
}

impl Address {
    pub fn get<F, Args>(self, access: Access, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add("GET", access, web::get().to(handler))
    }

    pub fn head<F, Args>(self, access: Access, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add("HEAD", access, web::head().to(handler))
    }

    pub fn post<F, Args>(self, access: Access, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add("POST", access, web::post().to(handler))
    }

    pub fn patch<F, Args>(self, access: Access, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add("PATCH", access, web::patch().to(handler))
    }

    pub fn delete<F, Args>(self, access: Access, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.add("DELETE", access, web::delete().to(handler))
    }

    fn add(mut self, method: &'static str, access: Access, route: Route) -> Self {
        self.routes.push((method, access, route));
        self
    }

    /// The path's pattern.
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// Every method with who may use it.
    pub fn methods(&self) -> impl Iterator<Item = (&'static str, Access)> {
        self.routes
            .iter()
            .map(|&(method, access, _)| (method, access))
    }

    /// The library's form: each route behind its access; other methods are answered with 405, to those who may use
    /// any of the address's.
    pub fn into_resource(self) -> Resource {
        let allowed = self.methods().map(|(method, _)| method);
        let allowed = allowed.collect::<Vec<_>>().join(", ");
        let least = self.methods().map(|(_, access)| access).min();
        let mut resource = web::resource(self.path);
        for (_, access, route) in self.routes {
            resource = resource.route(guarded(access, route));
        }
        let refuse = move || {
            let allowed = allowed.clone();
            async move { Err::<HttpResponse, _>(ApiError::MethodNotAllowed { allowed }) }
        };
        let others = web::route().to(refuse);
        resource.default_service(guarded(least.unwrap_or(Access::Infer), others))
    }
}

/// What answers where there is no address, to those who have a key where there are keys.
pub fn nowhere() -> Route {
    let refuse = || async { Err::<HttpResponse, _>(ApiError::no_such_address()) };
    guarded(Access::Infer, web::route().to(refuse))
}

/// A route that nobody gets through without `access`.
fn guarded(access: Access, route: Route) -> Route {
    route.wrap(from_fn(
        move |request: ServiceRequest, next: Next<actix_web::body::BoxBody>| async move {
            let admitted = match request.app_data::<web::Data<State>>() {
                Some(state) => state.keys.admit(access, request.headers()),
                None => Err(ApiError::Internal(
                    "the application has no state".to_owned(),
                )),
            };
            let caller = match admitted {
                Ok(name) => name.map(str::to_owned),
                Err(error) => return Ok(request.into_response(error.error_response())),
            };
            if let Some(name) = caller {
                request.extensions_mut().insert(Caller(name));
            }
            next.call(request).await
        },
    ))
}
