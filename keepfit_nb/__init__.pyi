"The public API, all of it. What is not here belongs to its chapter, and may change with it."
__version__: str

# Models
from .pretraining import KeepFIT as KeepFIT, find_pretrained as find_pretrained
from .encoders import ImageEncoder as ImageEncoder, TextEncoder as TextEncoder, build_image_encoder as build_image_encoder, build_text_encoder as build_text_encoder
from .decoding import preprocess as preprocess

# Training
from .training import fit as fit
from .contrastive import clip_loss as clip_loss
from .tokenizer import ImageTokenizer as ImageTokenizer, load_tokenizer as load_tokenizer
from .appearance import TokenHead as TokenHead
from .references import AppearanceAttention as AppearanceAttention, EliteMemory as EliteMemory, SemanticAttention as SemanticAttention
from .injection import Injection as Injection
from .decoder import CaptionDecoder as CaptionDecoder

# Judging
from .measures import interval as interval, score as score
from .zero_shot import prototypes as prototypes, sentence_vectors as sentence_vectors
from .few_shot import tip_adapter as tip_adapter
from .linear_probe import fit_probe as fit_probe, probe_probs as probe_probs
from .segmentation import Segmenter as Segmenter, train_segmenter as train_segmenter
from .ranking import judge_ranking as judge_ranking, search as search
from .comparisons import compare as compare
from .saliency import heat as heat, heats as heats, show_heat as show_heat
from .embeddings import Embeddings as Embeddings, save_embeddings as save_embeddings

# Data
from .sources import SetSpec as SetSpec, read_set as read_set
from .registry import find_source as find_source, load_registry as load_registry
from .download import fetch as fetch
from .images import ImageCache as ImageCache
from .atlas import read_atlas as read_atlas
from .categories import canonical as canonical, load_knowledge as load_knowledge
from .knowledge import prompts as prompts

# Simulated eyes
from .eye import Eye as Eye, sample_eye as sample_eye
from .fundus import render_fundus as render_fundus
from .angiography import render_angiogram as render_angiogram
from .oct import render_oct as render_oct
from .speech import caption as caption

# Runs
from .profiles import Profile as Profile, Run as Run, load_profile as load_profile, open_run as open_run, stage as stage
from .running import begin as begin
from .comparison import compare_runs as compare_runs
from .machine import examine as examine
