/** Paints at most once a frame, and more rarely where painting is slow: at most a fifth of the time goes into it. */
export class Painter {
  constructor(paint) {
    this.paint = paint;
    this.timer = 0;
    this.pause = 0;
  }

  request() {
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      const started = performance.now();
      this.paint();
      this.pause = 16 + 4 * (performance.now() - started);
    }, this.pause);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = 0;
  }
}
