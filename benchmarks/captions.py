"Captions at full size, for the study: are they true, how varied are they, how fast are they written?"
import time

from keepfit_nb.phrases import LANGUAGES
from keepfit_nb.reading import consistency, many_eyes, mutations, pictures, read, variety, verdict
from keepfit_nb.speech import caption


def measure(
    eyes: int = 10_000,       # read back in both languages, all modalities
    captions: int = 20_000,   # for frames and words, half of them English
) -> dict:                    # flat names → numbers
    "consistency, frames, vocabulary, lengths, speed."
    truth = consistency(eyes)
    texts, start = [], time.perf_counter()
    for i, eye in enumerate(many_eyes(captions, 1)):
        texts += [caption(eye, m, i % 5, language, phase) for m, phase in pictures(eye) for language in LANGUAGES]
        if len(texts) >= captions: break
    with_eyes = len(texts) / (time.perf_counter() - start)
    eyes_again = [(e, m, p) for e in many_eyes(500, 2) for m, p in pictures(e)]
    start = time.perf_counter()
    for e, m, p in eyes_again: caption(e, m, 0, "en", p)
    speed = len(eyes_again) / (time.perf_counter() - start)
    noticed = [bool(v["wrong"] or v["missed"]) for e, m, p in eyes_again for language in LANGUAGES
               for _, other in mutations(caption(e, m, 0, language, p)) for v in [verdict(read(other), e, m, p)]]
    truth = {"captions_read" if k == "captions" else k: v for k, v in truth.items() if k != "faults"}
    return {**truth, **variety(texts), "captions_per_second": round(speed),
            "with_their_eyes_per_second": round(with_eyes), "mutations": len(noticed), "mutations_noticed": sum(noticed) / len(noticed)}


if __name__ == "__main__":
    for name, value in measure().items(): print(f"{name}: {value}")
