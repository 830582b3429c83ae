{{- /*
As much of kustomize as deploy/kubernetes needs, so that this chart repeats nothing that stands there: resources, RFC 6902
patches, a ConfigMap's literals, an image. Each takes .files (the chart's) and .folders, whose kustomizations it applies in
their order.
*/ -}}

{{- /* All resources, patched: YAML of a dict by "Kind/name". */ -}}
{{- define "kustomize.objects" -}}
{{- $objects := dict -}}
{{- range $folder := .folders -}}
  {{- $kustomization := include "kustomize.read" (dict "files" $.files "folder" $folder) | fromYaml -}}
  {{- range $resource := $kustomization.resources -}}
    {{- if hasSuffix ".yaml" $resource -}}{{- /* else another folder, which is in .folders itself */ -}}
      {{- range regexSplit "(?m)^---$" ($.files.Get (printf "kustomize/%s/%s" $folder $resource)) -1 -}}
        {{- $object := fromYaml . -}}
        {{- $_ := set $objects (printf "%s/%s" $object.kind $object.metadata.name) $object -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
  {{- range $patch := $kustomization.patches -}}
    {{- range $name, $object := $objects -}}
      {{- if regexMatch (printf "^%s/%s$" $patch.target.kind $patch.target.name) $name -}}
        {{- range fromYamlArray $patch.patch -}}
          {{- include "kustomize.apply" (dict "object" $object "operation" .) -}}
        {{- end -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- toYaml $objects -}}
{{- end -}}

{{- /* Applies .operation to .object in place. Its path ends in a key of a mapping, or in `-`: behind the last of a list. */ -}}
{{- define "kustomize.apply" -}}
{{- $way := splitList "/" (trimPrefix "/" .operation.path) -}}
{{- $appends := eq (last $way) "-" -}}
{{- if $appends -}}{{- $way = initial $way -}}{{- end -}}
{{- $parent := .object -}}
{{- range initial $way -}}
  {{- if kindIs "slice" $parent -}}{{- $parent = index $parent (atoi .) -}}{{- else -}}{{- $parent = get $parent . -}}{{- end -}}
{{- end -}}
{{- $key := last $way -}}
{{- if $appends -}}
  {{- $_ := set $parent $key (append (get $parent $key) .operation.value) -}}
{{- else if eq .operation.op "remove" -}}
  {{- $_ := unset $parent $key -}}
{{- else -}}
  {{- $_ := set $parent $key .operation.value -}}
{{- end -}}
{{- end -}}

{{- /* What the generators of ConfigMaps say: YAML of a dict. */ -}}
{{- define "kustomize.literals" -}}
{{- $data := dict -}}
{{- range $folder := .folders -}}
  {{- $kustomization := include "kustomize.read" (dict "files" $.files "folder" $folder) | fromYaml -}}
  {{- range $kustomization.configMapGenerator -}}
    {{- range .literals -}}
      {{- $pair := regexSplit "=" . 2 -}}
      {{- $_ := set $data (first $pair) (last $pair) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- toYaml $data -}}
{{- end -}}

{{- /* What becomes of the image: YAML of newName and newTag. */ -}}
{{- define "kustomize.image" -}}
{{- $image := dict -}}
{{- range $folder := .folders -}}
  {{- $kustomization := include "kustomize.read" (dict "files" $.files "folder" $folder) | fromYaml -}}
  {{- range $kustomization.images -}}
    {{- $image = mergeOverwrite $image . -}}
  {{- end -}}
{{- end -}}
{{- toYaml $image -}}
{{- end -}}

{{- define "kustomize.read" -}}
{{- $path := printf "kustomize/%s/kustomization.yaml" .folder -}}
{{- .files.Get $path | required (printf "%s is not in the chart" $path) -}}
{{- end -}}
