// Pictures from a camera or a video file, one for each interval of the model's frames.

const LONGEST_SIDE = 512; // px of the pictures that are sent; the server's encoder takes fewer still
const QUALITY = 0.85;
const LONGEST_GAP_S = 2; // for which the last picture stands in where the browser shows none

// Why there is no camera here, or "".
export function withoutCamera() {
  if (navigator.mediaDevices?.getUserMedia) return "";
  return "Browsers give the camera to pages on https:// or localhost only. Open this page there.";
}

// Lets `video` show the camera; throws an Error with a sentence.
export async function showCamera(video) {
  try {
    const wanted = { video: { facingMode: "environment", width: { ideal: 1280 } }, audio: false };
    video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    throw new Error(denied ? "The camera was not allowed. Allow it for this page." : `No camera: ${error.message}`);
  }
  await video.play();
}

// Lets `video` stand at so many seconds of a file; throws an Error with a sentence.
export async function showFile(video, file, seconds = 0) {
  video.src = URL.createObjectURL(file);
  try {
    await video.play();
    video.pause();
    video.currentTime = seconds;
  } catch {
    URL.revokeObjectURL(video.src);
    throw new Error("This browser cannot play the file. Try an MP4 with H.264.");
  }
}

// Ends the camera, or stops the file; the last picture stays.
export function freeze(video) {
  video.pause();
  video.srcObject?.getTracks().forEach((track) => track.stop());
}

// Lets `video` show nothing.
export function release(video) {
  freeze(video);
  if (video.src) URL.revokeObjectURL(video.src);
  video.srcObject = null;
  video.removeAttribute("src");
  video.load();
}

export class Sampler {
  // Takes frame k when the first picture behind it is shown: the last picture before (k + 1) / fps.
  // from: seconds at which the first frame begins. taken(jpeg as base64, seconds of the frame's start); ended() behind
  // a file's last frame.
  constructor(video, fps, from, taken, ended) {
    this.video = video;
    this.fps = fps;
    this.from = from;
    this.taken = taken;
    this.ended = ended;
    this.canvas = document.createElement("canvas");
    this.slot = null; // interval of the picture on the canvas
    this.first = null; // time of a camera's first picture
    this.isOver = false;
  }

  start() {
    const next = () => this.video.requestVideoFrameCallback((now, { mediaTime }) => {
      if (this.isOver) return;
      this.#show(this.#seconds(now, mediaTime));
      next();
    });
    next();
    this.video.onended = () => this.#finish();
  }

  stop() {
    this.isOver = true;
    this.video.onended = null;
  }

  #seconds(now, mediaTime) {
    if (!this.video.srcObject) return mediaTime;
    this.first ??= now;
    return this.from + (now - this.first) / 1000;
  }

  #show(seconds) {
    const slot = Math.floor(Math.max(seconds, this.from) * this.fps + 1e-6); // a file may show the picture before
    if (this.slot !== null) this.#takeUpTo(slot);
    this.slot = slot;
    const { videoWidth: width, videoHeight: height } = this.video;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext("2d", { alpha: false });
    context.imageSmoothingQuality = "high";
    context.drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
  }

  #takeUpTo(end) {
    const first = Math.max(this.slot, end - LONGEST_GAP_S * this.fps);
    for (let slot = first; slot < end; slot += 1) this.#take(slot);
  }

  #take(slot) {
    const url = this.canvas.toDataURL("image/jpeg", QUALITY);
    this.taken(url.slice(url.indexOf(",") + 1), slot / this.fps);
  }

  #finish() {
    if (this.isOver) return;
    this.stop();
    if (this.slot !== null) this.#takeUpTo(Math.floor(this.video.duration * this.fps + 1e-3));
    this.ended();
  }
}
