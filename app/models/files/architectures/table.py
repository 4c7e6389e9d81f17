"""The facts: which published model a list of tensors belongs to, and which entry runs it. One record each.

Where the lists come from: `diffusers` is the key layout of the library's class, diffusers or transformers,
with the published configuration. `original` is the layout of the model's authors and mostly of ComfyUI, which
is diffusers' single-file converter inverted; `comfyui` is ComfyUI's own. `llama.cpp` is that of GGUF text
encoders, by the gguf package.
No list has been compared with a downloaded file, which `framefit inspect` says of each (`UNVERIFIED`).

Longer than 300 lines because it is one table.
"""

from dataclasses import dataclass

UNVERIFIED = "no downloaded file was compared with this list"


@dataclass(frozen=True, slots=True)
class Published:
    """A published model. `base` is its hub id in diffusers' form; `like` the shipped entry that runs it.

    A model without `base` makes no video from an image.
    """

    name: str
    base: str | None = None
    like: str = ""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One list of tensors. `component` is its name in the pipeline, `likes` the shipped entries that use it.

    `models` is empty for components that several models share. Several models mean: the same keys and shapes.
    `optional` are patterns of tensors that a file may have or leave out. `doubts` says, for a layout or for
    all (""), which facts were taken from neither diffusers' converters nor a published configuration.
    `unloadable` says of a layout why no loader reads it. `bases` are the hub ids whose component has these
    shapes, if they are not those of all `likes`.
    """

    keys: str
    component: str
    class_name: str
    title: str
    likes: tuple[str, ...] = ()
    models: tuple[Published, ...] = ()
    optional: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()
    unloadable: tuple[tuple[str, str], ...] = ()
    bases: tuple[str, ...] = ()

    def unverified(self, layout: str) -> str:
        """What could not be checked of the list in this layout."""
        return "; ".join((UNVERIFIED, *(text for where, text in self.doubts if where in ("", layout))))

    def refusal(self, layout: str, base: str) -> str | None:
        """Why a file in this layout cannot be loaded into a model of that base, a hub id; None if it can."""
        if self.bases and base not in self.bases:
            return f"the {self.component} of {base} has other shapes, and {self.title} fits {self.bases[0]}"
        return next((text for where, text in self.unloadable if where == layout), None)


LTX_2B = Published("LTX-Video 2B", "Lightricks/LTX-Video", "ltx-video")
LTX_13B = Published("LTX-Video 13B", "Lightricks/LTX-Video-0.9.7-dev", "ltx-video")
LTX_2 = Published("LTX-2 19B", "Lightricks/LTX-2", "ltx-2")
WAN_I2V_480 = Published("Wan 2.1 I2V 14B 480P", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "wan21-i2v-480p")
WAN_I2V_720 = Published("Wan 2.1 I2V 14B 720P", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "wan21-i2v-480p")
WAN_FLF = Published("Wan 2.1 FLF2V 14B", "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "wan21-flf2v-720p")
WAN_22_HIGH = Published("Wan 2.2 I2V A14B (high noise)", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "wan22-i2v-a14b")
WAN_22_LOW = Published("Wan 2.2 I2V A14B (low noise)", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "wan22-i2v-a14b")
WAN_5B = Published("Wan 2.2 TI2V 5B", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "wan22-ti2v-5b")
HUNYUAN_I2V = Published(
    "HunyuanVideo I2V (token replace)", "hunyuanvideo-community/HunyuanVideo-I2V", "hunyuanvideo-i2v"
)
HUNYUAN_33 = Published(
    "HunyuanVideo I2V (latent concat)", "hunyuanvideo-community/HunyuanVideo-I2V-33ch", "hunyuanvideo-i2v"
)
HUNYUAN_15 = Published(
    "HunyuanVideo 1.5 480p I2V",
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v",
    "hunyuanvideo15-i2v-480p",
)
COGVIDEOX = Published("CogVideoX 5B I2V", "THUDM/CogVideoX-5b-I2V", "cogvideox-5b-i2v")
SVD = Published("SVD XT", "stabilityai/stable-video-diffusion-img2vid-xt", "svd-xt")

_WAN_21 = ("wan21-i2v-480p", "wan22-i2v-a14b")
_WAN = (*_WAN_21, "wan22-ti2v-5b")
_T5 = ("encoder.embed_tokens.weight", "shared.weight", "decoder.*", "lm_head.weight")
_LLM = ("lm_head.weight", "output.weight", "rope_freqs.weight")
_LTX_STATISTICS = ("per_channel_statistics.*", "latents_mean", "latents_std")
_CONFIGURATION = (("", "its configuration is not shipped with Framefit"),)
_NO_CONVERTER = "diffusers' single-file converter does not know these names, which other programs use"
_COMFYUI = (("comfyui", _NO_CONVERTER),)
_ORIGINAL = (("original", _NO_CONVERTER),)
_NO_GGUF = ("llama.cpp", "GGUF text encoders are loaded for T5 and UMT5: get it as safetensors")
_HALF = ("diffusers", "it is a language model alone, and its base needs the vision model in the same file")
_NO_EMB_POS = (("original", "diffusers' single-file converter does not know img_emb.emb_pos"),)
_LTX_CLASS = "LTXVideoTransformer3DModel"
_WAN_CLASS, _HUNYUAN_CLASS = "WanTransformer3DModel", "HunyuanVideoTransformer3DModel"

ARCHITECTURES = (
    Architecture("ltx-2b", "transformer", _LTX_CLASS, "LTX-Video 2B", ("ltx-video",), (LTX_2B,)),
    Architecture(
        "ltx-13b",
        "transformer",
        _LTX_CLASS,
        "LTX-Video 13B",
        ("ltx-video",),
        (LTX_13B,),
        doubts=_CONFIGURATION,
    ),
    Architecture(
        "ltx-2",
        "transformer",
        "LTX2VideoTransformer3DModel",
        "LTX-2 19B",
        ("ltx-2",),
        (LTX_2,),
        optional=("*_embeddings_connector.*",),
    ),
    Architecture(
        "wan-1.3b",
        "transformer",
        _WAN_CLASS,
        "Wan 1.3B",
        models=(Published("Wan 2.1 T2V 1.3B"),),
        doubts=_CONFIGURATION,
    ),
    Architecture(
        "wan-14b",
        "transformer",
        _WAN_CLASS,
        "Wan 14B, text to video",
        models=(
            Published("Wan 2.1 T2V 14B"),
            Published("Wan 2.2 T2V A14B (high noise)"),
            Published("Wan 2.2 T2V A14B (low noise)"),
        ),
        doubts=_CONFIGURATION,
    ),
    Architecture(
        "wan-14b-i2v",
        "transformer",
        _WAN_CLASS,
        "Wan 2.2 14B, image to video",
        ("wan22-i2v-a14b",),
        (WAN_22_HIGH, WAN_22_LOW),
    ),
    Architecture(
        "wan-14b-i2v-clip",
        "transformer",
        _WAN_CLASS,
        "Wan 2.1 14B, image to video",
        ("wan21-i2v-480p",),
        (WAN_I2V_480, WAN_I2V_720),
    ),
    Architecture(
        "wan-14b-flf",
        "transformer",
        _WAN_CLASS,
        "Wan 2.1 14B, first and last frame",
        ("wan21-flf2v-720p",),
        (WAN_FLF,),
        doubts=_NO_EMB_POS,
        unloadable=_NO_EMB_POS,
    ),
    Architecture("wan-5b", "transformer", _WAN_CLASS, "Wan 2.2 5B", ("wan22-ti2v-5b",), (WAN_5B,)),
    Architecture(
        "hunyuanvideo",
        "transformer",
        _HUNYUAN_CLASS,
        "HunyuanVideo",
        ("hunyuanvideo-i2v",),
        (HUNYUAN_I2V, Published("HunyuanVideo T2V")),
        doubts=_COMFYUI,
        unloadable=_COMFYUI,
    ),
    Architecture(
        "hunyuanvideo-33ch",
        "transformer",
        _HUNYUAN_CLASS,
        "HunyuanVideo with 33 channels",
        ("hunyuanvideo-i2v",),
        (HUNYUAN_33,),
        doubts=(*_CONFIGURATION, *_COMFYUI),
        unloadable=_COMFYUI,
    ),
    Architecture(
        "hunyuanvideo15",
        "transformer",
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideo 1.5",
        ("hunyuanvideo15-i2v-480p",),
        (HUNYUAN_15,),
        doubts=_ORIGINAL,
        unloadable=_ORIGINAL,
    ),
    Architecture(
        "cogvideox-5b-i2v",
        "transformer",
        "CogVideoXTransformer3DModel",
        "CogVideoX 5B I2V",
        ("cogvideox-5b-i2v",),
        (COGVIDEOX,),
    ),
    Architecture("svd", "unet", "UNetSpatioTemporalConditionModel", "SVD", ("svd-xt",), (SVD,)),
    Architecture(
        "t5-xxl",
        "text_encoder",
        "T5EncoderModel",
        "T5-XXL",
        ("ltx-video", "cogvideox-5b-i2v"),
        optional=_T5,
    ),
    Architecture(
        "umt5-xxl",
        "text_encoder",
        "UMT5EncoderModel",
        "UMT5-XXL",
        _WAN,
        optional=_T5,
        doubts=_ORIGINAL,
        unloadable=_ORIGINAL,
    ),
    Architecture(
        "clip-l",
        "text_encoder_2",
        "CLIPTextModel",
        "CLIP-L",
        ("hunyuanvideo-i2v",),
        optional=("embeddings.position_ids",),
    ),
    Architecture(
        "llama-8b",
        "text_encoder",
        "LlavaForConditionalGeneration",
        "Llama 3 8B of LLaVA",
        ("hunyuanvideo-i2v",),
        optional=_LLM,
        unloadable=(_HALF, _NO_GGUF),
    ),
    Architecture(
        "qwen-7b",
        "text_encoder",
        "Qwen2_5_VLTextModel",
        "Qwen2.5-VL 7B",
        ("hunyuanvideo15-i2v-480p",),
        optional=_LLM,
        unloadable=(_NO_GGUF,),
    ),
    Architecture(
        "gemma-12b",
        "text_encoder",
        "Gemma3ForConditionalGeneration",
        "Gemma 3 12B",
        ("ltx-2",),
        optional=_LLM,
        unloadable=(_HALF, _NO_GGUF),
    ),
    Architecture(
        "clip-h",
        "image_encoder",
        "CLIPVisionModelWithProjection",
        "CLIP ViT-H",
        ("wan21-i2v-480p", "svd-xt"),
        optional=("post_layernorm.*", "embeddings.position_ids"),
    ),
    Architecture(
        "siglip",
        "image_encoder",
        "SiglipVisionModel",
        "SigLIP",
        ("hunyuanvideo15-i2v-480p",),
        optional=("head.*", "embeddings.position_ids"),
    ),
    Architecture(
        "ltx-vae-0.9",
        "vae",
        "AutoencoderKLLTXVideo",
        "LTX-Video 0.9",
        ("ltx-video",),
        optional=_LTX_STATISTICS,
        bases=("Lightricks/LTX-Video",),
    ),
    Architecture(
        "ltx-vae-0.9.1",
        "vae",
        "AutoencoderKLLTXVideo",
        "LTX-Video 0.9.1",
        ("ltx-video",),
        optional=_LTX_STATISTICS,
        bases=("Lightricks/LTX-Video-0.9.1",),
        doubts=_CONFIGURATION,
    ),
    Architecture(
        "ltx-vae-0.9.5",
        "vae",
        "AutoencoderKLLTXVideo",
        "LTX-Video 0.9.5 and later",
        ("ltx-video",),
        optional=_LTX_STATISTICS,
        bases=("Lightricks/LTX-Video-0.9.7-dev", "Lightricks/LTX-Video-0.9.5"),
        doubts=_CONFIGURATION,
    ),
    Architecture("ltx2-vae", "vae", "AutoencoderKLLTX2Video", "LTX-2", ("ltx-2",), optional=_LTX_STATISTICS),
    Architecture(
        "ltx2-audio-vae",
        "audio_vae",
        "AutoencoderKLLTX2Audio",
        "LTX-2 sound",
        ("ltx-2",),
        optional=_LTX_STATISTICS,
    ),
    Architecture("wan21-vae", "vae", "AutoencoderKLWan", "Wan 2.1", _WAN_21),
    Architecture(
        "wan22-vae",
        "vae",
        "AutoencoderKLWan",
        "Wan 2.2 5B",
        ("wan22-ti2v-5b",),
        doubts=_ORIGINAL,
        unloadable=_ORIGINAL,
    ),
    Architecture(
        "hunyuanvideo-vae", "vae", "AutoencoderKLHunyuanVideo", "HunyuanVideo", ("hunyuanvideo-i2v",)
    ),
    Architecture(
        "hunyuanvideo15-vae",
        "vae",
        "AutoencoderKLHunyuanVideo15",
        "HunyuanVideo 1.5",
        ("hunyuanvideo15-i2v-480p",),
    ),
    Architecture("cogvideox-vae", "vae", "AutoencoderKLCogVideoX", "CogVideoX", ("cogvideox-5b-i2v",)),
    Architecture("svd-vae", "vae", "AutoencoderKLTemporalDecoder", "SVD", ("svd-xt",)),
)
