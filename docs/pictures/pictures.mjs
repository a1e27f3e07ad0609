// Pictures of our masks in other people's viewers, by headless Chromium: NiiVue (NIfTI) and OHIF with Orthanc (DICOM-SEG).
//     node pictures.mjs PHANTOM OHIF_DIST OUTPUT      (docs/pictures/make does it all)
// Nothing outside this machine is reached: everything else that a page asks for is refused.
import { spawn } from "node:child_process";
import { mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";

const { chromium } = createRequire(path.join(process.cwd(), "package.json"))("playwright-core");
const [phantom, ohif, output] = process.argv.slice(2);
const STEPS = 16; // slices down from the first with a segment: spleen and both kidneys
const PORT = 18181, ORTHANC = 18142, HERE = `http://127.0.0.1:${PORT}`;
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm",
                ".json": "application/json", ".svg": "image/svg+xml", ".woff2": "font/woff2" };

const NIIVUE = `<!doctype html><body style="margin:0;background:#000"><canvas id="gl" width="1000" height="640"></canvas>
<script type="module">
import { Niivue } from "/niivue/index.js";
const nv = new Niivue({ show3Dcrosshair: true, backColor: [0, 0, 0, 1], multiplanarForceRender: true, isColorbar: false });
await nv.attachToCanvas(document.getElementById("gl"));
await nv.loadVolumes([{ url: "/phantom/ct.nii.gz", cal_min: -140, cal_max: 260 }, { url: "/phantom/ct_seg.nii.gz", opacity: 0.6 }]);
const table = (await (await fetch("/phantom/ct_seg.ctbl")).text()).split("\\n").filter((line) => line && !line.startsWith("#"))
  .map((line) => line.split(/\\s+/));
const columns = [0, 2, 3, 4, 5].map((n) => table.map((row) => Number(row[n])));
const [I, R, G, B, A] = columns;
nv.volumes[1].setColormapLabel({ I, R, G, B, A, labels: table.map((row) => row[1].replaceAll("_", " ")) });
nv.updateGLVolume();
nv.setSliceType(nv.sliceTypeMultiplanar);
nv.scene.crosshairPos = nv.mm2frac([-62, -42, 30]);
nv.drawScene();
document.title = "ready";
</script>`;

// OHIF's own defaults but for the data source.
const OHIF = `window.config = { routerBasename: "/", extensions: [], modes: [], showStudyList: true, maxNumberOfWebWorkers: 1,
  showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false, defaultDataSourceName: "dicomweb",
  investigationalUseDialog: { option: "never" }, disableConfirmationPrompts: true,
  dataSources: [{ namespace: "@ohif/extension-default.dataSourcesModule.dicomweb", sourceName: "dicomweb",
    configuration: { friendlyName: "Orthanc", name: "Orthanc", wadoUriRoot: "/wado", qidoRoot: "/dicom-web",
      wadoRoot: "/dicom-web", qidoSupportsIncludeField: false, supportsReject: false, imageRendering: "wadors",
      thumbnailRendering: "wadors", enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true } }] };`;

function serve() {
  const folders = { "/phantom/": phantom, "/niivue/": path.resolve("node_modules/@niivue/niivue/dist") };
  const server = createServer(async (ask, answer) => {
    const where = decodeURIComponent(new URL(ask.url, HERE).pathname);
    if (where.startsWith("/dicom-web/") || where.startsWith("/wado")) {
      const through = request({ host: "127.0.0.1", port: ORTHANC, path: ask.url, method: ask.method, headers: ask.headers },
        (reply) => { answer.writeHead(reply.statusCode, reply.headers); reply.pipe(answer); });
      return ask.pipe(through);
    }
    if (where === "/niivue.html") return answer.writeHead(200, { "content-type": "text/html" }).end(NIIVUE);
    if (where === "/app-config.js") return answer.writeHead(200, { "content-type": "text/javascript" }).end(OHIF);
    const [prefix, folder] = Object.entries(folders).find(([prefix]) => where.startsWith(prefix)) ?? ["/", ohif];
    const headers = { "cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp" };
    try {
      const file = path.join(folder, path.normalize("/" + where.slice(prefix.length)));
      const content = await readFile(file);
      answer.writeHead(200, { ...headers, "content-type": TYPES[path.extname(file)] ?? "application/octet-stream" }).end(content);
    } catch {
      if (path.extname(where) || folder !== ohif) return answer.writeHead(404).end();
      answer.writeHead(200, { ...headers, "content-type": "text/html" }).end(await readFile(path.join(ohif, "index.html")));
    }
  });
  return new Promise((done) => server.listen(PORT, "127.0.0.1", () => done(server)));
}

async function orthanc(folder) {
  const settings = { StorageDirectory: folder, IndexDirectory: folder, HttpPort: ORTHANC, DicomServerEnabled: false,
    RemoteAccessAllowed: false, AuthenticationEnabled: false, HttpThreadsCount: 8,
    Plugins: ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
    DicomWeb: { Enable: true, Root: "/dicom-web/", EnableWado: true, WadoRoot: "/wado" } };
  await writeFile(path.join(folder, "orthanc.json"), JSON.stringify(settings));
  const child = spawn("/usr/sbin/Orthanc", [path.join(folder, "orthanc.json")], { stdio: "ignore" });
  const rest = `http://127.0.0.1:${ORTHANC}`;
  for (let tries = 0; ; tries++) {
    try { await fetch(`${rest}/system`); break; }
    catch (problem) { if (tries > 60) throw problem; await new Promise((done) => setTimeout(done, 500)); }
  }
  const slices = (await readdir(path.join(phantom, "ct"))).map((name) => path.join(phantom, "ct", name));
  for (const file of [...slices, path.join(phantom, "ct_seg.dcm")]) {
    const reply = await fetch(`${rest}/instances`, { method: "POST", body: await readFile(file) });
    if (!reply.ok) throw new Error(`Orthanc refuses ${path.basename(file)}: ${reply.status}`);
  }
  return child;
}

async function niivuePicture(page) {
  await page.setViewportSize({ width: 1000, height: 640 });
  await page.goto(`${HERE}/niivue.html`);
  await page.waitForFunction(() => document.title === "ready", null, { timeout: 120000 });
  await page.waitForTimeout(3000);
  await page.screenshot({ path: path.join(output, "open_niivue.png") });
}

async function ohifPicture(page) {
  await page.setViewportSize({ width: 1300, height: 760 });
  const study = (await (await fetch(`http://127.0.0.1:${ORTHANC}/dicom-web/studies`)).json())[0]["0020000D"].Value[0];
  await page.goto(`${HERE}/viewer?StudyInstanceUIDs=${study}`, { waitUntil: "domcontentloaded" });
  const skip = page.getByText("Skip all");
  await skip.waitFor({ timeout: 120000 });
  await skip.click();
  await page.getByText("fewscan segmentation").first().dblclick();
  await page.locator("[data-cy=panelSegmentation-btn], [data-cy*=egmentation-btn]").first().click();
  await page.getByText("right kidney").first().waitFor({ timeout: 120000 }); // the list of segments
  await page.locator(".cornerstone-viewport-element").first().hover();
  for (let step = 0; step < STEPS; step++) {
    await page.mouse.wheel(0, 100);
    await page.waitForTimeout(200);
  }
  await page.mouse.move(120, 700);
  await page.waitForTimeout(5000);
  await page.screenshot({ path: path.join(output, "open_ohif.png") });
}

const scratch = await mkdtemp(path.join(tmpdir(), "pictures-"));
const server = await serve();
const archive = await orthanc(scratch);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
try {
  const page = await browser.newPage();
  page.on("pageerror", (problem) => console.log("page:", problem.message));
  await page.route((url) => !url.href.startsWith(HERE) && url.protocol.startsWith("http"), (route) => route.abort());
  await niivuePicture(page);
  await ohifPicture(page);
} finally {
  await browser.close();
  archive.kill();
  server.close();
  await rm(scratch, { recursive: true, force: true });
}
