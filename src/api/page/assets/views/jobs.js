// The Jobs view: trainings and prunings, one of them as it goes on, and the form of a new one.

import { html, useEffect, useState } from "../html.js";
import { ask, may, role } from "../api.js";
import { link, opened } from "../address.js";
import { Problem } from "../parts/fields.js";
import { clock, duration } from "../parts/numbers.js";
import { NewJob } from "../jobs/new_job.js";
import { OneJob } from "../jobs/one_job.js";

export default function Jobs() {
  if (role.value === null) return html`<h1>Jobs</h1><p class="waiting">…</p>`;
  if (!may("train")) return html`<h1>Jobs</h1><p>Trainings and prunings are for keys of the role <b>train</b>; this one is for ${role.value}.</p>`;
  return opened.value.rest ? html`<${OneJob} id=${opened.value.rest} />` : html`<${AllJobs} />`;
}

function AllJobs() {
  const [jobs, setJobs] = useState(null);
  const [problem, setProblem] = useState(null);
  const list = () => ask("/v1/fine_tuning/jobs?limit=100").then((answer) => {
    setJobs(answer.data);
    setProblem(null);
  }, setProblem);
  useEffect(() => {
    list();
    const timer = setInterval(list, 3000);
    return () => clearInterval(timer);
  }, []);
  return html`<h1>Jobs</h1><${Problem} error=${problem} again=${list} />
    ${jobs?.length === 0 ? html`<p class="empty">No job yet.</p>` : null}
    ${jobs?.length > 0 ? html`<div class="scroll" tabindex="0" role="region" aria-label="Jobs"><table><thead><tr><th>job</th><th>what</th><th>state</th><th>steps</th><th>since</th><th>left</th></tr></thead>
    <tbody>${jobs.map((job) => html`<tr key=${job.id}><td><a href=${link("jobs", {}, job.id)}>${job.fine_tuned_model ?? job.id}</a></td><td>${job.method.type} of ${job.model}</td><td>${job.status}</td>
      <td class="number">${job.step} / ${job.steps}</td><td>${clock(job.created_at)}</td><td>${job.estimated_finish ? duration(Math.max(0, job.estimated_finish - Date.now() / 1000)) : ""}</td></tr>`)}</tbody></table></div>` : null}
    <${NewJob} started=${(job) => (location.hash = link("jobs", {}, job.id))} />`;
}
