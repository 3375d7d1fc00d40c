// One job as it goes on: its state, its curves, a panel for each term, its events, and what may be done with it.

import { html, useEffect, useMemo, useRef, useState } from "../html.js";
import { ask, stream } from "../api.js";
import { link } from "../address.js";
import { byId, circuits, bridges, refresh } from "../served.js";
import { LineChart } from "../parts/chart.js";
import { DownloadButton, Problem } from "../parts/fields.js";
import { clock, duration, short } from "../parts/numbers.js";

const ENDED = ["succeeded", "failed", "cancelled"];
const MOST_EVENTS = 200;

function Curve({ name, training, heldOut }) {
  const { x, lines } = useMemo(() => {
    const steps = [...new Set([...(training ?? []), ...(heldOut ?? [])].map((point) => point.step))].sort((one, two) => one - two);
    const over = (points, pick) => {
      const by = new Map((points ?? []).map((point) => [point.step, pick(point)]));
      return steps.map((step) => by.get(step) ?? null);
    };
    const lines = [];
    if (training) lines.push({ label: "training", colour: "accent", values: over(training, (point) => point.value), low: over(training, (point) => point.low), high: over(training, (point) => point.high) });
    if (heldOut) lines.push({ label: "held out", colour: "steered", values: over(heldOut, (point) => point.value), dashes: [5, 4] });
    return { x: steps, lines };
  }, [training, heldOut]);
  return x.length < 1 ? null : html`<${LineChart} title=${name.replaceAll("_", " ")} x=${x} xLabel="step" lines=${lines} height=${170} />`;
}

// Where a finished job's result is looked at or steered.
function Result({ job }) {
  const id = job.fine_tuned_model;
  if (!id) return null;
  const bridge = bridges.value.find((bridge) => bridge.id === id);
  const circuit = circuits.value.find((circuit) => circuit.id === id);
  const model = byId.value.get(id) ?? (bridge ? byId.value.get(bridge.dense) : null);
  return html`<p class="row">Its result is <b>${id}</b>.
    ${circuit ? html`<a class="button" href=${link("circuits", {}, id)}>Look at the circuit</a>` : null}
    ${bridge ? html`<a class="button" href=${link("steer", { model: bridge.dense, bridge: bridge.id, prompt: "x = ", edits: [{ feature: `${bridge.sites.at(-2)?.site ?? "final_resid"}:0`, op: "add", value: 4 }], go: true })}>Steer ${bridge.dense}</a>`
      : model ? html`<a class="button" href=${link("steer", { model: model.id })}>Try it</a>` : null}
    <${DownloadButton} path=${`/v1/models/${encodeURIComponent(id)}/archive`} name=${`${id}.tar`}>Download it<//></p>`;
}

export function OneJob({ id }) {
  const [job, setJob] = useState(null);
  const [curves, setCurves] = useState(null);
  const [events, setEvents] = useState([]);
  const [problem, setProblem] = useState(null);
  const [broken, setBroken] = useState(null);
  const due = useRef(null);
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;

  const look = async () => {
    try {
      const [now, plot] = await Promise.all([ask(path), ask(`${path}/plot`)]);
      setJob(now);
      setCurves(plot);
      if (now.status === "succeeded") refresh();
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  // Events come as they happen; job and curves are asked for again at most every second and a half.
  const soon = () => {
    due.current ??= setTimeout(() => {
      due.current = null;
      look();
    }, 1500);
  };
  const follow = async (abort) => {
    setBroken(null);
    let seen = [];
    let drawn = false;
    try {
      for await (const event of stream(`${path}/events?stream=true`, { open: true, abort })) {
        seen = [...seen.slice(1 - MOST_EVENTS), event];
        if (!drawn) {
          drawn = true;
          requestAnimationFrame(() => {
            drawn = false;
            setEvents(seen);
          });
        }
        soon();
      }
      await look();
    } catch (refusal) {
      if (!abort.aborted) setBroken(refusal);
    }
  };
  const aborter = useRef(null);
  const begin = () => {
    aborter.current?.abort();
    aborter.current = new AbortController();
    look();
    follow(aborter.current.signal);
  };
  useEffect(() => {
    begin();
    // A job that waits or rests has no events; its state changes all the same.
    const timer = setInterval(look, 5000);
    return () => {
      aborter.current?.abort();
      clearInterval(timer);
      clearTimeout(due.current);
    };
  }, [id]);
  const act = async (what, method = "POST") => {
    setProblem(null);
    try {
      await ask(what ? `${path}/${what}` : path, { method });
      if (!what) location.hash = link("jobs");
      else begin();
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  const back = html`<p><a href=${link("jobs")}>← All jobs</a></p>`;
  if (!job) return html`${back}<h1>${id}</h1>${problem ? html`<${Problem} error=${problem} again=${look} />` : html`<p class="waiting">…</p>`}`;
  const ended = ENDED.includes(job.status);
  const names = [...new Set([...Object.keys(curves?.training ?? {}), ...Object.keys(curves?.held_out ?? {})])];
  const seconds = job.estimated_finish ? job.estimated_finish - Date.now() / 1000 : 0;
  const measures = job.status === "running" && job.step === job.steps;
  const left = measures ? "; its result is being measured" : seconds > 0 ? `, done in about ${duration(seconds)}` : "";
  const begun = job.started_at && !ended ? Date.now() / 1000 - job.started_at : null;
  return html`${back}<h1>${job.fine_tuned_model ?? job.id}</h1>
    <p role="status"><b>${job.status}</b>${job.asked ? ` (asked to ${job.asked})` : ""}: step ${job.step} of ${job.steps}${left}.
      A ${job.method.type} of ${job.model}${begun ? `, running for ${duration(begun)}` : ""}.</p>
    <progress max=${Math.max(1, job.steps)} value=${job.step} aria-label="Steps done"></progress>
    <div class="row">
      ${job.status === "running" || job.status === "queued" ? html`<button type="button" onClick=${() => act("pause")}>Pause</button>` : null}
      ${job.status === "paused" || job.status === "failed" ? html`<button type="button" onClick=${() => act("resume")}>Resume</button>` : null}
      ${ended && job.status !== "failed" ? null : html`<button type="button" onClick=${() => act("cancel")}>Cancel</button>`}
      ${ended ? html`<button type="button" onClick=${() => act("", "DELETE")}>Forget it</button>` : null}</div>
    <${Problem} error=${problem} />
    ${job.error ? html`<${Problem} error=${job.error} />` : null}
    <${Result} job=${job} />
    ${names.length > 0 ? html`<section class="panel"><h2>Curves</h2><div class="curves">${names.map((name) => html`<${Curve} key=${name} name=${name} training=${curves.training[name]} heldOut=${curves.held_out[name]} />`)}</div></section>` : null}
    <section class="panel"><h2>Events</h2>
      <${Problem} error=${broken} again=${begin} />
      <div class="scroll" tabindex="0" role="log" aria-label="Events" aria-live="off"><table><tbody>${[...events].reverse().map((event) => html`<tr key=${event.id} class=${event.level}><td class="position when">${clock(event.created_at)}</td><td>${event.message}</td>
        <td>${Object.entries(event.data ?? {}).filter(([name]) => name !== "step").slice(0, 6).map(([name, value]) => `${name} ${typeof value === "number" ? short(value) : JSON.stringify(value)}`).join(", ")}</td></tr>`)}</tbody></table></div></section>
    <details><summary>What was asked for</summary><pre tabindex="0" aria-label="The job's method">${JSON.stringify(job.method, null, 2)}</pre></details>`;
}
